"""Runs a program on inputs, each in a process of its own, and tells its outputs as texts.

This file runs where nothing else of ours is, in the sandbox, and never sees a right output. Each
test is a fork that has the input on stdin, or as arguments, and one pipe for what comes out. What
the program does to its process, its interpreter or to the others can only lose tests: a test is
passed by the right text, which nobody in there knows.

    {"program": TEXT, "function": NAME or null, "inputs": [TEXT or [ARGUMENT, ...], ...],
     "seconds": CPU of a test, "all_seconds": by the clock}
    -> {"outputs": [TEXT or null, ...]}
"""

import builtins
import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
import types

TYPE_CHECKING = False  # typing takes long to import
if TYPE_CHECKING:
    from typing import Any

MAX_OUTPUT = 20_000
"""Longest output of a test, in bytes; with more of it the test is lost"""
_LIBRARY = ("bisect", "collections", "copy", "dataclasses", "fractions", "functools", "heapq")
_MORE = ("itertools", "math", "operator", "random", "re", "string", "typing")
_TICK = 0.02


def spelled(value: "Any") -> str:
    """Return a value of plain types as a text that equal ones of the same types alone have.

    Raises ValueError for any other type, and RecursionError for what is too deep.
    """
    kind = type(value)
    if kind in (int, bool, str, float, bytes, type(None)):
        return repr(value)
    if kind in (list, tuple):
        inner = ", ".join([spelled(one) for one in value])
        return f"[{inner}]" if kind is list else f"({inner},)"
    if kind in (set, frozenset):
        return "{" + ", ".join(sorted([spelled(one) for one in value])) + ",}"
    if isinstance(value, dict):  # those that count or have defaults too
        return (
            "{" + ", ".join(sorted([f"{spelled(k)}: {spelled(v)}" for k, v in value.items()])) + "}"
        )
    raise ValueError(f"{kind.__name__} is no plain type")


def outputs(job: "dict[str, Any]") -> "list[str | None]":
    """Return what a program gives for each input; None where it fails, and for all after a test
    that took too long."""
    for name in (*_LIBRARY, *_MORE):
        if name in job["program"]:  # once for all tests
            __import__(name)
    deadline = time.monotonic() + job["all_seconds"]
    found = []
    for given in job["inputs"]:
        text, is_late = _output(job, given, deadline)
        found.append(text)
        if is_late:
            break
    return found + [None] * (len(job["inputs"]) - len(found))


def _output(job: "dict[str, Any]", given: "Any", deadline: float) -> "tuple[str | None, bool]":
    """Return the output of one test, if there is one, and whether it ran out of time."""
    end, start = os.pipe()
    stdin = os.memfd_create("stdin")
    if isinstance(given, str):
        os.write(stdin, given.encode())
        os.lseek(stdin, 0, os.SEEK_SET)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            code = _play(job, given, stdin, start)
        except BaseException:  # an exit with words, a failed import, too deep a recursion
            code = 1
        finally:
            os._exit(code)
    os.close(start)
    os.close(stdin)
    try:
        content = _read(end, pid, deadline)
        status = _wait(pid, deadline)
    finally:
        os.close(end)
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    is_late = status is None or (
        os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
    )
    if status != 0 or len(content) > MAX_OUTPUT:
        return None, is_late
    return content.decode("utf-8", "replace"), False


def _read(end: int, pid: int, deadline: float) -> bytes:
    """Return what comes through a pipe until it is closed, the process has ended, or it is too
    much."""
    content = b""
    has_ended = False
    while len(content) <= MAX_OUTPUT and time.monotonic() < deadline:
        if select.select([end], [], [], 0 if has_ended else _TICK)[0]:
            piece = os.read(end, MAX_OUTPUT)
            if not piece:
                break
            content += piece
        elif has_ended:  # another process holds the pipe
            break
        else:
            state = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            has_ended = state is not None
    return content


def _wait(pid: int, deadline: float) -> "int | None":
    """Return the status that a process ended with, soon after it let go of its pipe; None if it
    had to be killed."""
    soon = min(deadline, time.monotonic() + 1)
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if time.monotonic() >= soon:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.001)


def _play(job: "dict[str, Any]", given: "Any", stdin: int, output: int) -> int:
    """Run the program, in the fork, and write its output; return the exit code."""
    seconds = job["seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    null = os.open(os.devnull, os.O_RDWR)
    is_function = job["function"] is not None
    os.dup2(stdin, 0)
    os.dup2(null if is_function else output, 1)
    os.dup2(null, 2)
    kept = os.dup(output) if is_function else 1
    os.closerange(3, kept)
    os.closerange(max(kept, 2) + 1, 64)
    space = _new_module("solution" if is_function else "__main__")
    sys.argv = ["solution.py"]
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # they are of site, which -S leaves out
    try:
        exec(compile(job["program"], "solution.py", "exec"), space)
    except SystemExit as end:
        if is_function or end.code not in (None, 0):
            return 1
    if is_function:
        text = spelled(space[job["function"]](*given)).encode()
        while text:
            text = text[os.write(kept, text) :]
        return 0
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    sys.stdout.flush()
    return 0


def _new_module(name: str) -> "dict[str, Any]":
    """Return the names of a new module that is loaded, as dataclasses need theirs to be."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    return vars(module)


def main(path: str) -> None:
    """Take a job, and write what came of it to stdout."""
    with open(path, "rb") as file:
        job = json.load(file)
    os.unlink(path)
    os.write(1, b"The program runs.\n")
    said = json.dumps({"outputs": outputs(job)}).encode()
    while said:
        said = said[os.write(1, said) :]


if __name__ == "__main__":
    main(sys.argv[1])
