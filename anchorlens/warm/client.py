"""papermill's client as all runs have it: what cells print is bounded, and progress is one line."""

import ast
import time
from queue import Empty
from typing import Any

from jupyter_core.utils import run_sync
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.log import logger

from anchorlens.warm import COLD

PATIENCE = 300  # seconds for imports at the start, and for setting back at the end
DRAIN = 600  # seconds in which what a cell has printed comes through after its end; nbclient's 4 are for 100 MB


class WarmKernelError(RuntimeError):
    """A kernel that could not be made ready for a run."""


class Client(PapermillNotebookClient):
    """papermill's client, which can ask the kernel, and has it bound what cells print."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, iopub_timeout=DRAIN, **more)

    def papermill_execute_cells(self) -> None:
        self.require("printing.begin()")
        super().papermill_execute_cells()

    def output(self, outs: list[Any], msg: dict[str, Any], display_id: str | None, cell_index: int) -> Any:
        """Take an output into ``outs``; of a line that is written over, the last state, as it is seen."""
        given = super().output(outs, msg, display_id, cell_index)
        if given is None or len(outs) < 2 or outs[-1] is not given or given["output_type"] != "stream":
            return given
        text, before = given["text"], outs[-2]
        if text[:1] == "\r" and text[1:2] != "\n" and before.get("name") == given["name"]:
            outs.pop()
            before["text"] = before["text"][: before["text"].rfind("\n") + 1] + text
        return given

    def require(self, call: str) -> None:
        """Have the kernel make ready.

        Raises:
            WarmKernelError: with what it says, if it cannot.
        """
        if said := self.ask(call):
            raise WarmKernelError(f"the kernel could not be made ready for this run: {'; '.join(said)}")

    def ask(self, call: str) -> list[str]:
        """What ``anchorlens.warm.<call>`` says in the kernel; how it failed, where it did."""
        kc: Any = self.kc
        module, _, function = call.partition(".")
        expression = f"__import__('importlib').import_module('anchorlens.warm.{module}').{function}"
        sent = kc.execute("", silent=True, store_history=False, user_expressions={"said": expression})
        said = self._reply(sent)["content"].get("user_expressions", {}).get("said", {})
        if said.get("status") != "ok":
            return [f"{function.partition('(')[0]}: {said.get('ename')}: {said.get('evalue')}"]
        return ast.literal_eval(said["data"]["text/plain"])

    def _reply(self, sent: str) -> dict[str, Any]:
        kc: Any = self.kc
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                message = run_sync(kc.shell_channel.get_msg)(timeout=1)
            except Empty:
                run_sync(self._async_check_alive)()
                continue
            if message["parent_header"].get("msg_id") == sent:
                return message
        raise DeadKernelError(f"the kernel did not answer within {PATIENCE} seconds")


def settings(
    *, start_timeout: int = 60, execution_timeout: int | None = None, input_path: str | None = None, **more: Any
) -> dict[str, Any]:
    """What papermill gives an engine, in the words of its client; ``input_path`` is no matter of it."""
    timeout = execution_timeout or more.pop("timeout", None)
    return {"startup_timeout": start_timeout, "timeout": timeout, "log": logger, **more}


class ColdEngine(NBClientEngine):
    """papermill's own engine, which starts a kernel for each notebook, with this client."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **given: Any) -> None:
        # all is written when the last cell has ended: taking down what it had imported would take two seconds more
        Client(nb_man, kernel_name=kernel_name, shutdown_kernel="immediate", **settings(**given)).execute()


def register() -> None:
    """Make the engine known to papermill."""
    papermill_engines.register(COLD, ColdEngine)
