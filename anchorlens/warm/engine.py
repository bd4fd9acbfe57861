"""papermill's engine ``anchorlens``: runs a notebook in a kernel that is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbclient.exceptions import DeadKernelError
from papermill.engines import Engine

from anchorlens.warm import ENGINE, Kernel, client

SETTING_BACK = 600.0  # seconds until a kernel is given up; the weights of a large model are summed meanwhile
_of_this_process = Kernel()  # for callers that know papermill alone


class Client(client.Client):
    """The client of all runs, which has the kernel make ready before the first cell."""

    def papermill_execute_cells(self) -> None:
        self.require("printing.begin()")  # before it is noted how the kernel stands
        self.require(f"inside.begin({str(Path.cwd())!r})")
        super().papermill_execute_cells()


class WarmEngine(Engine):
    """Runs a notebook in ``kernel``, by default one that this process keeps."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        config: Any = None,
        kernel: Kernel | None = None,
        code: str = "",
        **given: Any,
    ) -> None:
        kernel = _of_this_process if kernel is None else kernel
        with kernel.serving(kernel_name, code, config) as manager:
            if config is not None:
                given["config"] = config
            running = Client(nb_man, km=manager, kernel_name=kernel_name, **client.settings(**given))
            try:
                running.execute()
                kernel.ended(_left(running, running.ask("inside.end()", SETTING_BACK)))
            except BaseException:
                if running.kc is not None:
                    running.kc.stop_channels()
                raise


def _left(running: Client, answer: Callable[[], list[str]]) -> Callable[[], list[str]]:
    """What of a run stays in its kernel; the run itself is over, so a kernel that cannot say is no error of it."""

    kc: Any = running.kc

    def left() -> list[str]:
        try:
            return answer()
        except (DeadKernelError, ValueError, KeyError, SyntaxError) as error:
            return [f"end: {type(error).__name__}: {error}"]
        finally:
            kc.stop_channels()

    return left


def register() -> None:
    """Make the engine known to papermill, which otherwise reads it from the metadata of an installed package."""
    from papermill.engines import papermill_engines

    papermill_engines.register(ENGINE, WarmEngine)
