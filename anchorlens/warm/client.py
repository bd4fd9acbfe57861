"""papermill's client as all runs have it: what cells print is bounded, and progress is one line."""

import ast
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty
from typing import Any

from jupyter_core.utils import run_sync
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.log import logger

from anchorlens.warm import COLD

PATIENCE = 300.0  # seconds for imports at the start
DRAIN = 600  # seconds in which what a cell has printed comes through after its end; nbclient's 4 are for 100 MB


class WarmKernelError(RuntimeError):
    """A kernel that could not be made ready for a run."""


class Client(PapermillNotebookClient):
    """papermill's client, which can ask the kernel, and has it bound what cells print."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, iopub_timeout=DRAIN, **more)

    def papermill_execute_cells(self) -> None:
        self.require("printing.begin()")
        _save_before_code(self.nb_man)
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
        if said := self.ask(call)():
            raise WarmKernelError(f"the kernel could not be made ready for this run: {'; '.join(said)}")

    def ask(self, call: str, patience: float = PATIENCE) -> Callable[[], list[str]]:
        """Ask the kernel for ``anchorlens.warm.<call>``; what is given waits for its answer, or how it failed."""
        kc: Any = self.kc
        module, _, function = call.partition(".")
        expression = f"__import__('importlib').import_module('anchorlens.warm.{module}').{function}"
        sent = kc.execute("", silent=True, store_history=False, user_expressions={"said": expression})

        def answer() -> list[str]:
            said = self._reply(sent, patience)["content"].get("user_expressions", {}).get("said", {})
            if said.get("status") != "ok":
                return [f"{function.partition('(')[0]}: {said.get('ename')}: {said.get('evalue')}"]
            return ast.literal_eval(said["data"]["text/plain"])

        return answer

    def _reply(self, sent: str, patience: float) -> dict[str, Any]:
        kc: Any = self.kc
        until = time.monotonic() + patience
        while time.monotonic() < until:
            try:
                message = run_sync(kc.shell_channel.get_msg)(timeout=1)
            except Empty:
                run_sync(self._async_check_alive)()
                continue
            if message["parent_header"].get("msg_id") == sent:
                return message
        raise DeadKernelError(f"the kernel did not answer within {patience:.0f} seconds")


def _save_before_code(manager: Any) -> None:
    """Have a run's notebook written when a code cell begins, and by papermill at the end.

    That shows where the run is; papermill would write all of it twice for each cell, and for each piece of text.
    """
    save = manager.save

    def writing(step: Callable[..., Any], when: bool) -> Callable[..., Any]:
        def wrapped(cell: Any, *given: Any, **named: Any) -> Any:
            manager.save = save if when and cell.cell_type == "code" else lambda **_: None
            try:
                return step(cell, *given, **named)
            finally:
                manager.save = save

        return wrapped

    manager.cell_start, manager.cell_complete = writing(manager.cell_start, True), writing(manager.cell_complete, False)


def settings(
    *, start_timeout: int = 60, execution_timeout: int | None = None, input_path: str | None = None, **more: Any
) -> dict[str, Any]:
    """What papermill gives an engine, in the words of its client; ``input_path`` is no matter of it."""
    timeout = execution_timeout or more.pop("timeout", None)
    return {"startup_timeout": start_timeout, "timeout": timeout, "log": logger, **more}


class _Once(Client):
    """For a kernel that is killed after its only notebook: what it would leave behind is ended before."""

    def papermill_execute_cells(self) -> None:
        super().papermill_execute_cells()
        with suppress(DeadKernelError):  # all cells were run, and of what it leaves a kernel cannot lose more
            self.ask("inside.close()", patience=30.0)()


class ColdEngine(NBClientEngine):
    """papermill's own engine, which starts a kernel for each notebook, with this client."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **given: Any) -> None:
        # all is written when the last cell has ended: taking down what it had imported would take two seconds more
        _Once(nb_man, kernel_name=kernel_name, shutdown_kernel="immediate", **settings(**given)).execute()


def register() -> None:
    """Make the engine known to papermill."""
    papermill_engines.register(COLD, ColdEngine)
