"""Worker processes for code that may hang, crash or fill the memory: one pool, with limits.

    Workers.call -> an idle process, or a new one -> its answer in time, or WorkerError and its end

A call that raises, takes too long or too much is an error, and never a score. A process that hung
is killed, and another one takes its place.
"""

import asyncio
import atexit
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

_PROGRAM: Final = Path(__file__).with_name("program.py")
_START_SECONDS: Final = 60.0
"""Longest import of a library"""
_MAX_BYTES: Final = 2**22
"""Longest answer of a call"""
_NUM_CALLS: Final = 10_000
"""Calls that one process makes: a library may keep something of each"""


class WorkerError(RuntimeError):
    """A call that failed: it raised, took too long, or its process ended."""


class Workers:
    """Processes that make calls, one at a time each. They start when they are needed, and end with
    this process."""

    def __init__(
        self,
        *,
        size: int = 4,
        memory_bytes: int = 2**31,
        hash_seed: int = 0,
        patience: float = 10.0,
    ) -> None:
        """size: most processes at a time; memory_bytes: most address space of each;
        hash_seed: of Python, which decides the order of sets of texts; patience: seconds by the
        clock that may pass for each second of the processor, since a machine may be busy"""
        if size < 1:
            raise ValueError(f"size is {size}, it must be at least 1")
        self._size = size
        self._hash_seed, self._patience = hash_seed, patience
        self._memory_bytes = memory_bytes
        self._idle: list[_Process] = []
        self._free = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._is_closed = False
        self._all: set[_Process] = set()
        self.seconds = 0.0
        """Time of the processor that the last call took"""
        atexit.register(self.close)

    @property
    def num_processes(self) -> int:
        """Number of processes that run."""
        with self._lock:
            return len(self._all)

    def call(
        self, function: str, *arguments: object, seconds: float = 10.0, module: str = ""
    ) -> Any:
        """Return what a function of `program.py` returns. It waits while all processes are busy.

        seconds  of the processor
        module   imported before, with a limit of its own

        Raises WorkerError if it raises, or does not answer in time.
        """
        with self._free:
            process = self._take()
            is_well = False
            try:
                if module and module not in process.known:
                    process.call("prepare", [module], _START_SECONDS, self._patience)
                    process.known.add(module)
                value = process.call(function, list(arguments), seconds, self._patience)
                self.seconds, is_well = process.seconds, True
                return value
            except _RaisedError as error:
                is_well = True
                raise WorkerError(str(error)) from None
            finally:
                self._give_back(process, is_well)

    async def acall(
        self, function: str, *arguments: object, seconds: float = 10.0, module: str = ""
    ) -> Any:
        """Do as `call` does, in a thread."""
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._size, "fulmen-worker")
        work = partial(self.call, function, *arguments, seconds=seconds, module=module)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """End all processes, busy ones too. A call after it is an error."""
        with self._lock:
            self._is_closed = True
            processes, self._all, self._idle = list(self._all), set(), []
            threads, self._threads = self._threads, None
        for one in processes:
            one.kill()
        if threads is not None:
            threads.shutdown(wait=True, cancel_futures=True)
        for one in processes:
            one.close()
        atexit.unregister(self.close)

    def _take(self) -> "_Process":
        with self._lock:
            if self._is_closed:
                raise WorkerError("the workers are closed")
            while self._idle:
                process = self._idle.pop()
                if process.is_alive:
                    return process
                self._all.discard(process)
                process.close()
            process = _Process(self._memory_bytes, self._hash_seed)
            self._all.add(process)
            return process

    def _give_back(self, process: "_Process", is_well: bool) -> None:
        with self._lock:
            if is_well and not self._is_closed and process.num_calls < _NUM_CALLS:
                self._idle.append(process)
                return
            self._all.discard(process)
        process.close()


class _RaisedError(Exception):
    """A call raised something, and its process is well."""


class _Process:
    """One process; `call` is for one thread at a time."""

    def __init__(self, memory_bytes: int, hash_seed: int) -> None:
        folders = [os.path.abspath(folder) for folder in sys.path]
        # Libraries draw from sets, whose order follows from the hash seed.
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
        environment["OPENBLAS_NUM_THREADS"] = "1"
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM), str(memory_bytes), *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._requests.fileno(), False)
        self.known: set[str] = set()
        """Modules that it has imported"""
        self.num_calls = 0
        self.seconds = 0.0
        """Time of the processor that the last call took"""

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def call(self, function: str, arguments: list[object], seconds: float, patience: float) -> Any:
        """Return the answer to a call. Raises _RaisedError, or WorkerError where the process is of
        no more use."""
        self.num_calls += 1
        end = time.monotonic() + patience * seconds
        data = json.dumps([function, arguments]).encode()
        self._write(struct.pack(">Id", len(data), seconds) + data, end)
        (length,) = struct.unpack(">I", self._read(4, end))
        if length > _MAX_BYTES:
            raise WorkerError(f"a worker's answer has {length:,} bytes, more than {_MAX_BYTES:,}")
        answer = json.loads(self._read(length, end))
        if "error" in answer:
            if answer["error"].startswith("MemoryError"):
                raise WorkerError("a worker's memory is full")
            raise _RaisedError(answer["error"])
        self.seconds = answer["seconds"]
        return answer["value"]

    def _write(self, data: bytes, end: float) -> None:
        left = memoryview(data)
        while left:
            self._wait(self._requests.fileno(), selectors.EVENT_WRITE, end)
            try:
                left = left[os.write(self._requests.fileno(), left) :]
            except BlockingIOError:
                continue
            except OSError:
                raise self._ended() from None

    def _read(self, length: int, end: float) -> bytes:
        data = bytearray()
        while len(data) < length:
            self._wait(self._answers.fileno(), selectors.EVENT_READ, end)
            piece = os.read(self._answers.fileno(), length - len(data))
            if not piece:
                raise self._ended()
            data += piece
        return bytes(data)

    def _wait(self, file: int, event: int, end: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(file, event)
            if not selector.select(max(end - time.monotonic(), 0)):
                raise WorkerError("a worker did not answer in time")

    def _ended(self) -> WorkerError:
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return WorkerError("a worker closed its output")
        if code == -signal.SIGPROF:
            return WorkerError("a worker needed too much time")
        return WorkerError(f"a worker ended with code {code}")

    def kill(self) -> None:
        """End the process and all that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process and let go of its pipes."""
        self.kill()
        self._process.wait()
        with suppress(OSError):
            self._requests.close()
        self._answers.close()


def shared_workers(memory_bytes: int = 2**31) -> Workers:
    """Return the pool of this process whose workers may have so much address space."""
    return _pool(os.getpid(), memory_bytes)


@cache
def _pool(_: int, memory_bytes: int) -> Workers:
    return Workers(size=max(1, min(4, os.cpu_count() or 1)), memory_bytes=memory_bytes)
