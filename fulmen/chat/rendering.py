"""Chat templates rendered within bounds: in processes of their own, which can be ended.

    render_template -> an idle worker, or a new one -> text, or one sentence
                       too long, too big: the worker is killed, the next render starts another

A render may take MAX_SECONDS and write MAX_CHARS, and twice the characters of the messages on top:
a long conversation is no attack. Only templates of checkpoints need this; our own formats do not.
"""

import atexit
import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

MAX_SECONDS: Final = 5.0
"""Time of one render, compiling included"""
MAX_CHARS: Final = 16_000_000
"""Characters of a rendered prompt, besides twice those of what it renders"""
MAX_TEMPLATE_CHARS: Final = 1_000_000
"""Characters of a template; the largest published ones have some 20,000"""
_MEMORY_BYTES: Final = 256 * 2**20
"""Memory of a render, besides MEMORY_PER_CHAR times the characters of what it renders"""
_MEMORY_PER_CHAR: Final = 64
_MAX_IDLE: Final = 2
"""Workers that wait for the next render"""
_WORKER: Final = Path(__file__).with_name("template_worker.py")


def render_template(template: str, **variables: Any) -> str:
    """Return what a chat template makes of the variables.

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
    found = _workers.run(f'{job[:-1]}, "variables": {given}}}'.encode(), 12 * max_chars + 10_000)
    match found:
        case {"text": str(text)}:
            return text
        case {"refused": str(reason)}:
            raise ValueError(f"the chat template refused the messages: {reason}")
        case {"failed": str(reason)}:
            raise ValueError(f"the chat template failed: {reason}")
    raise ValueError("the chat template failed: its process gave no answer")


class _Worker:
    """A process that renders templates, one after the other."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C at the terminal is not for it
            )
        except OSError as error:
            raise ValueError(
                "a chat template is rendered in a process of its own, which cannot be started "
                f"here: {error}"
            ) from None

    def run(self, job: bytes, max_bytes: int) -> object:
        """Return the answer to a job; None if the process ended before it gave one."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        clock = threading.Timer(MAX_SECONDS + 1, process.kill)
        clock.daemon = True
        clock.start()
        try:
            process.stdin.write(struct.pack("<Q", len(job)))
            process.stdin.write(job)
            process.stdin.flush()
            header = process.stdout.read(8)
            size = struct.unpack("<Q", header)[0] if len(header) == 8 else max_bytes + 1
            reply = process.stdout.read(size) if size <= max_bytes else b""
            return json.loads(reply) if len(reply) == size else None
        except (OSError, ValueError):
            return None
        finally:
            clock.cancel()

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was not sent cannot be any more
                pipe.close()
        self._process.wait()


class _Workers:
    """Idle workers, shared by all threads of this process."""

    def __init__(self) -> None:
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._process_id: int | None = None

    def run(self, job: bytes, max_bytes: int) -> object:
        """Return a worker's answer to a job.

        Raises ValueError if it took too long or its process ended.
        """
        worker = self._take()
        found: object = None
        try:
            found = worker.run(job, max_bytes)
        finally:
            if found is None:
                worker.close()
            else:
                self._put(worker)
        if found is None:
            raise ValueError(
                f"the chat template failed: it took more than {MAX_SECONDS:.0f} seconds, or more "
                "memory than a template may have"
            )
        return found

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
            if self._idle:
                return self._idle.pop()
        return _Worker()

    def _put(self, worker: _Worker) -> None:
        with self._lock:
            if len(self._idle) < _MAX_IDLE:
                self._idle.append(worker)
                return
        worker.close()


_workers = _Workers()
atexit.register(_workers.close)
