"""A kernel's client that is ready when the kernel answers."""

import time
from queue import Empty
from typing import Any

from jupyter_client.asynchronous import AsyncKernelClient


class Client(AsyncKernelClient):
    """jupyter_client's, which after the kernel's answer waits until for 0.2 seconds nothing else has come.

    Here an answer to a question of this client must have come by both channels; then nothing older can be on its way,
    and what a run prints is heard.
    """

    async def wait_for_ready(self, timeout: float | None = None) -> None:  # type: ignore[override]
        """Wait for the kernel, for ``timeout`` seconds at most.

        Raises:
            RuntimeError: if it dies, or does not answer in time.
        """
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while True:
            asked = self.kernel_info()
            answer = await self._answer(self.shell_channel, asked, 1.0)
            if answer is not None and await self._answer(self.iopub_channel, asked, 0.2, idle=True) is not None:
                self._handle_kernel_info_reply(answer)
                return
            if not await self._async_is_alive():
                raise RuntimeError("Kernel died before replying to kernel_info")
            if time.monotonic() > until:
                raise RuntimeError(f"Kernel didn't respond in {timeout:.0f} seconds")

    async def _answer(self, channel: Any, asked: str, seconds: float, *, idle: bool = False) -> dict[str, Any] | None:
        """The message of a channel that answers ``asked``, or the last of those; None if it does not come in time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                found = await channel.get_msg(timeout=left)
            except Empty:
                break
            mine = found["parent_header"].get("msg_id") == asked
            if mine and (not idle or found["content"].get("execution_state") == "idle"):
                return found
        return None
