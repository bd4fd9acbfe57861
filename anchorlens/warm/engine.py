"""papermill's engine ``anchorlens``: runs a notebook in a kernel that is kept."""

import ast
import time
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_core.utils import run_sync
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine
from papermill.log import logger

from anchorlens.warm import ENGINE, Kernel

PATIENCE = 300  # seconds for imports at the start, and for setting back at the end
_of_this_process = Kernel()  # for callers that know papermill alone


class WarmKernelError(RuntimeError):
    """A kernel that could not be made ready for a run."""


class Client(PapermillNotebookClient):
    """papermill's client, which asks the kernel to make ready before the first cell."""

    def papermill_execute_cells(self) -> None:
        if said := self.ask(f"begin({str(Path.cwd())!r})"):
            raise WarmKernelError(f"the warm kernel could not be made ready for this run: {'; '.join(said)}")
        super().papermill_execute_cells()

    def ask(self, call: str) -> list[str]:
        """What ``anchorlens.warm.inside.<call>`` says in the kernel; how it failed, where it did."""
        kc: Any = self.kc
        expression = f"__import__('importlib').import_module('anchorlens.warm.inside').{call}"
        sent = kc.execute("", silent=True, store_history=False, user_expressions={"said": expression})
        said = self._reply(sent)["content"].get("user_expressions", {}).get("said", {})
        if said.get("status") != "ok":
            return [f"{call.partition('(')[0]}: {said.get('ename')}: {said.get('evalue')}"]
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


class WarmEngine(Engine):
    """Runs a notebook in ``kernel``, by default one that this process keeps."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        log_output: bool = False,
        stdout_file: Any = None,
        stderr_file: Any = None,
        start_timeout: int = 60,
        execution_timeout: int | None = None,
        input_path: str | None = None,
        config: Any = None,
        kernel: Kernel | None = None,
        code: str = "",
        **more: Any,
    ) -> None:
        kernel = _of_this_process if kernel is None else kernel
        with kernel.serving(kernel_name, code, config) as manager:
            client = Client(
                nb_man,
                km=manager,
                kernel_name=kernel_name,
                timeout=execution_timeout or more.pop("timeout", None),
                startup_timeout=start_timeout,
                log=logger,
                log_output=log_output,
                stdout_file=stdout_file,
                stderr_file=stderr_file,
                **({"config": config} if config is not None else {}),
                **more,
            )
            try:
                client.execute()
                left = _left(client)
            finally:
                if client.kc is not None:
                    client.kc.stop_channels()
        if left:
            kernel.give_up("; ".join(left))


def _left(client: Client) -> list[str]:
    """What of a run stays in its kernel; the run itself is over, so a kernel that cannot say is no error of it."""
    try:
        return client.ask("end()")
    except (DeadKernelError, ValueError, KeyError, SyntaxError) as error:
        return [f"end: {type(error).__name__}: {error}"]


def register() -> None:
    """Make the engine known to papermill, which otherwise reads it from the metadata of an installed package."""
    from papermill.engines import papermill_engines

    papermill_engines.register(ENGINE, WarmEngine)
