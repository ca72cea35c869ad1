"""Requests to the supervisor and its answers, which are taken for a stranger's.

Whatever runs inside may have taken the supervisor over. So an answer is bounded before it is kept,
must be one to a request that waits for it, of the kind that this request has, and can do nothing
but end that request. Anything else ends the sandbox.
"""

import asyncio
import codecs
import socket
from collections.abc import Callable
from typing import Self

from fulmen.files import parse_json, shorten
from fulmen.sandbox.results import SandboxError
from fulmen.sandbox.wire import Unpacker, pack


class Call:
    """A request that is answered once."""

    def __init__(self) -> None:
        self.future = asyncio.get_running_loop().create_future()

    def again(self) -> Self:
        """Make it a request that was not answered yet."""
        self.future = asyncio.get_running_loop().create_future()
        return self

    def take(self, header: dict[str, object], body: bytes) -> bool:
        """Take an answer; return whether it was the last."""
        if header.get("kind") != "done":
            raise ValueError("an answer is of the wrong kind")
        if not self.future.done():
            self.future.set_result((header, body))
        return True


class Running(Call):
    """A command, of whose output the first half comes before its end."""

    def __init__(self, limit: int, on_output: Callable[[str], None] | None) -> None:
        super().__init__()
        self._room = limit // 2
        self._limit = limit
        self._on_output = on_output
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.head = bytearray()

    def take(self, header: dict[str, object], body: bytes) -> bool:
        if header.get("kind") == "end":
            if len(body) > self._limit:
                raise ValueError("there is more output than asked for")
            return super().take({**header, "kind": "done"}, body)
        self._room -= len(body)
        if header.get("kind") != "output" or self._room < 0:
            raise ValueError("there is more output than asked for")
        self.head += body
        if self._on_output and not self.future.done():
            try:
                self._on_output(self._decoder.decode(body))
            except Exception as error:  # the caller's own
                self.future.set_exception(error)
        return False


class Connection:
    """The host's end of the socket to the supervisor."""

    def __init__(self, control: socket.socket, kill: Callable[[], None]) -> None:
        """Begin to send and to receive. `kill` ends the sandbox at once."""
        self._control = control
        self._kill = kill
        self._pending: dict[int, Call] = {}
        self._number = 0
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._failure: str | None = None
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._send())]

    async def ask(
        self, call: Call, patience: float, body: bytes = b"", **request: object
    ) -> tuple[dict[str, object], bytes]:
        """Send a request and wait for its answer. Raises OSError and ValueError as the supervisor
        tells them, SandboxError if it tells nothing or nonsense."""
        self.check()
        self._number += 1
        number = self._number
        message = pack({"id": number, **request}, body)
        self._pending[number] = call
        self._outgoing.put_nowait(message)
        try:
            done, _ = await asyncio.wait({call.future}, timeout=patience)
            if not done:
                raise self.fail("the sandbox does not answer and was ended")
            header, answer = call.future.result()
        except BaseException:
            if isinstance(call, Running) and number in self._pending:
                self._outgoing.put_nowait(pack({"id": 0, "op": "cancel", "command": number}))
            call.future.cancel()
            raise
        return header, answer

    async def _send(self) -> None:
        """Send messages one after the other."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await loop.sock_sendall(self._control, await self._outgoing.get())
        except OSError:
            self.fail("the sandbox has ended by itself")

    async def _receive(self) -> None:
        """Take messages as they come: nobody else reads, so the supervisor never waits for long."""
        loop = asyncio.get_running_loop()
        unpacker = Unpacker()
        reason = "the sandbox has ended by itself"
        try:
            while piece := await loop.sock_recv(self._control, 2**18):
                for text, body in unpacker.feed(piece):
                    self._take(parse_json(text, "a message"), body)
        except OSError:
            pass
        except ValueError as error:
            reason = f"the sandbox sent what no sandbox sends ({shorten(error)}) and was ended"
        self.fail(reason)

    def _take(self, header: dict[str, object], body: bytes) -> None:
        number = header.get("id")
        if not isinstance(number, int) or number not in self._pending:
            raise ValueError("an answer to nothing")
        call = self._pending[number]
        if header.get("kind") != "error":
            is_last = call.take(header, body)
        else:
            is_last = True
            code, text = header.get("errno"), shorten(header.get("text"), 1000)
            if not call.future.done():
                is_system = isinstance(code, int) and 0 < code < 4096
                error = OSError(code, text) if is_system else ValueError(text)
                call.future.set_exception(error)
        if is_last:
            del self._pending[number]

    def check(self) -> None:
        """Raise if the sandbox has failed."""
        if self._failure:
            raise SandboxError(self._failure)

    def fail(self, reason: str) -> SandboxError:
        """End the sandbox and all that wait for it; return the error."""
        self._failure = self._failure or reason
        self._kill()
        for call in self._pending.values():
            if not call.future.done():
                call.future.set_exception(SandboxError(self._failure))
                call.future.exception()  # somebody may have stopped waiting
        self._pending.clear()
        return SandboxError(reason)

    def close(self) -> None:
        """Stop; whoever still waits is told."""
        for task in self._tasks:
            task.cancel()
        self.fail("the sandbox is closed")
