"""Chat templates rendered within bounds: in processes of their own, which can be ended.

    render_template -> an idle worker, or a new one -> text, or one sentence
                       too long, too big: the worker is killed, the next render starts another

A template can loop for years or build gigabytes, and nothing inside Python can stop it. So a
process renders it (`template_worker.py`) within MAX_SECONDS, little memory, and MAX_CHARS besides
twice the characters of the messages: a long conversation is no attack. A render waits for as long
as these bounds allow, and belongs on no thread that others wait for. Only templates of checkpoints
need all this; our own formats do not.
"""

import atexit
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

MAX_SECONDS: Final = 5.0
"""Time of one render, compiling included, the start of a process not"""
MAX_CHARS: Final = 16_000_000
"""Characters of a rendered prompt, besides twice those of what it renders"""
MAX_TEMPLATE_CHARS: Final = 1_000_000
"""Characters of a template; the largest published ones have some 20,000"""
_MEMORY_BYTES: Final = 256 * 2**20
"""Memory of a render, besides _MEMORY_PER_CHAR times the characters of what it renders"""
_MEMORY_PER_CHAR: Final = 64
_START_SECONDS: Final = 60.0
"""Time for Python and jinja2 to load, on a busy machine too"""
_MAX_IDLE: Final = 2
"""Workers that wait for the next render"""
_WORKER: Final = Path(__file__).with_name("template_worker.py")
_START: Final = """
import runpy, sys
worker, *sys.path = sys.argv[1:]
runpy.run_path(worker, run_name="__main__")
"""
"""Runs the worker with our sys.path; as the module fulmen.chat.template_worker it would load all of
fulmen.chat first"""


def render_template(template: str, **variables: Any) -> str:
    """Return the prompt that a chat template makes of the variables.

    Raises ValueError, one sentence, for a template that refuses them, fails, or takes too much
    time, memory or text, and for variables that are no JSON.
    """
    if len(template) > MAX_TEMPLATE_CHARS:
        raise ValueError(
            f"the chat template has {len(template)} characters, it may have {MAX_TEMPLATE_CHARS}"
        )
    try:
        given = json.dumps(variables)
    except RecursionError:
        raise ValueError("the messages are nested too deeply for a chat template") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"a chat template needs messages that are JSON: {error}") from None
    max_chars = MAX_CHARS + 2 * len(given)
    job = json.dumps(
        {
            "template": template,
            "seconds": MAX_SECONDS,
            "memory_bytes": _MEMORY_BYTES + _MEMORY_PER_CHAR * len(given),
            "max_chars": max_chars,
        }
    )
    # The variables are JSON already: they go in as they are.
    word, text = _workers.run(f'{job[:-1]}, "variables": {given}}}'.encode(), 4 * max_chars + 100)
    match word:
        case "text":
            return text
        case "refused":
            raise ValueError(f"the chat template refused the messages: {text}") from None
        case _:
            raise ValueError(f"the chat template failed: {text}") from None


class _Worker:
    """A process that renders templates, one after the other."""

    def __init__(self) -> None:
        if os.name != "posix" or not sys.executable:
            raise ValueError(
                "a chat template is rendered in a Python process with limits of its own, "
                "which this system does not offer, Linux does"
            )
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _START, str(_WORKER), *sys.path],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C at the terminal is not for it
                )
        except OSError as error:
            self._socket.close()
            raise ValueError(
                "a chat template is rendered in a process of its own, which cannot be started "
                f"here: {error}"
            ) from None
        try:
            word, _ = self._receive(time.monotonic() + _START_SECONDS, 100)
        except OSError:
            word = ""
        except BaseException:
            self.close()
            raise
        if word != "ready":
            self.close()
            raise ValueError(
                "a chat template is rendered in a process of its own, which ended with status "
                f"{self._process.returncode}: {sys.executable} must be a Python with jinja2"
            )

    def is_running(self) -> bool:
        """Return whether the process can be given a job."""
        return self._process.poll() is None

    def run(self, job: bytes, max_bytes: int) -> tuple[str, str]:
        """Return the word and the text of the answer to a job, or "ended" and why there is none:
        then the process must be closed."""
        deadline = time.monotonic() + MAX_SECONDS + 1  # before it, the worker's own clock
        try:
            self._socket.settimeout(MAX_SECONDS + 1)
            self._socket.sendall(struct.pack("<Q", len(job)) + job)
            return self._receive(deadline, max_bytes)
        except TimeoutError:
            reason = f"it took more than {MAX_SECONDS:g} seconds"
        except OSError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)  # for its own status, before we kill it
            status = self._process.returncode
            reason = f"the process that rendered it ended with status {status}"
            if status == -signal.SIGALRM:
                reason = f"it took more than {MAX_SECONDS:g} seconds"
        return "ended", reason

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._socket.close()
        self._process.wait()

    def _receive(self, deadline: float, max_bytes: int) -> tuple[str, str]:
        """Return the next answer; a template that broke out of its sandbox may send anything."""
        (size,) = struct.unpack("<Q", self._read(8, deadline))
        if size > max_bytes:
            raise ConnectionError
        word, _, text = self._read(size, deadline).decode("utf-8", "surrogatepass").partition("\n")
        return word, text

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = self._socket.recv(min(size - len(data), 2**20))
            if not piece:
                raise ConnectionError
            data += piece
        return bytes(data)


class _Workers:
    """Idle workers, shared by all threads of this process."""

    def __init__(self) -> None:
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._process_id: int | None = None

    def run(self, job: bytes, max_bytes: int) -> tuple[str, str]:
        """Return the word and the text of a worker's answer to a job."""
        worker = self._take()
        word = "ended"
        try:
            word, text = worker.run(job, max_bytes)
        finally:
            if word == "ended":
                worker.close()
            else:
                self._put(worker)
        return word, text

    def close(self) -> None:
        """End all idle workers."""
        with self._lock:
            idle, self._idle = self._idle, []
        if self._process_id == os.getpid():
            for worker in idle:
                worker.close()

    def _take(self) -> _Worker:
        with self._lock:
            if self._process_id != os.getpid():  # a fork: the workers are the parent's
                self._idle, self._process_id = [], os.getpid()
            while self._idle:
                worker = self._idle.pop()
                if worker.is_running():
                    return worker
                worker.close()
        return _Worker()

    def _put(self, worker: _Worker) -> None:
        with self._lock:
            if len(self._idle) < _MAX_IDLE:
                self._idle.append(worker)
                return
        worker.close()


_workers = _Workers()
atexit.register(_workers.close)
