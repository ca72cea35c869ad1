"""Python with torch loaded, which takes seconds: one process a test run loads it and forks.

    test -> `python(...)`, a small process -> the socket -> the parent forks a child, whose
    arguments, environment, folder and descriptors are those of the small process, which passes
    signals on to it and ends as it does

So a command that a test starts costs milliseconds and still is a process of its own, with a code
to exit with, that can be killed at any moment. What torch reads when it is loaded (OMP_NUM_THREADS,
warnings, the set of instructions) is the parent's: tests of those start Python itself.
"""

import json
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def python(*arguments: str | Path) -> list[str]:
    """Return the command that runs Python on `-c PROGRAM ...` or `-m MODULE ...`."""
    return [sys.executable, "-I", "-S", __file__, "run", _parent(), *map(str, arguments)]


@cache
def _parent() -> str:
    """Start the parent; return its socket. It ends with this process."""
    import atexit
    import subprocess
    import tempfile

    folder = tempfile.TemporaryDirectory(prefix="warm")
    path = f"{folder.name}/socket"
    tree = str(Path(__file__).parents[1])
    parent = subprocess.Popen(
        [sys.executable, __file__, "parent", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((tree, os.environ.get("PYTHONPATH", "")))},
        cwd=tree,
        start_new_session=True,
    )

    def end() -> None:
        parent.communicate()
        folder.cleanup()

    atexit.register(end)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    return path


def _run(path: str, arguments: list[str]) -> None:
    """Have the parent run arguments; end as the child does."""
    child, early = 0, list[int]()

    def pass_on(number: int, _: object) -> None:
        if child:
            with suppress(ProcessLookupError):
                os.kill(child, number)
        else:
            early.append(number)

    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    with socket.socket(socket.AF_UNIX) as parent:
        parent.connect(path)
        asked = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        message = json.dumps(asked).encode()
        socket.send_fds(parent, [len(message).to_bytes(4, "big")], [0, 1, 2])
        parent.sendall(message)
        with parent.makefile("rb") as answers:
            child = int(answers.readline())
            for kind in early:
                os.kill(child, kind)
            for descriptor in range(3):
                os.close(descriptor)
            status = os.waitstatus_to_exitcode(int(answers.readline() or b"9"))
    if status < 0:
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


class _Parent:
    """A process that forks for each connection, and says there how the child ended."""

    def __init__(self, path: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._ended, ends = socket.socketpair()
        ends.setblocking(False)
        self._ends = ends
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(ends.fileno())
        self._children: dict[int, socket.socket] = {}
        for source in (self._listener, self._ended, sys.stdin):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> list[str]:
        """Serve until stdin closes. Returns in each child, with its arguments."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    if (arguments := self._fork(connection)) is not None:
                        return arguments
                elif key.fileobj is self._ended:
                    self._ended.recv(4096)
                    self._reap()
                elif key.fileobj is sys.stdin:
                    for child in self._children:
                        os.kill(child, signal.SIGKILL)
                    os._exit(0)
                else:  # the small process was killed
                    self._kill(key.fileobj)

    def _fork(self, connection: socket.socket) -> list[str] | None:
        length, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
        message = b""
        while len(message) < int.from_bytes(length, "big"):
            message += connection.recv(1 << 20)
        asked = json.loads(message)
        child = os.fork()
        if child:
            for descriptor in descriptors:
                os.close(descriptor)
            self._children[child] = connection
            self._selector.register(connection, selectors.EVENT_READ)
            connection.sendall(f"{child}\n".encode())
            return None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        self._selector.close()
        for held in (connection, self._listener, self._ended, self._ends, *self._children.values()):
            held.close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        return list(asked["arguments"])

    def _reap(self) -> None:
        while self._children:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            connection = self._children.pop(child)
            self._selector.unregister(connection)
            with connection, suppress(OSError):
                connection.sendall(f"{status}\n".encode())

    def _kill(self, connection: object) -> None:
        child = next(child for child, one in self._children.items() if one is connection)
        os.kill(child, signal.SIGKILL)


def _parent_main(path: str) -> None:
    """Load what commands load, serve, and in a child be the Python that was asked for."""
    import atexit
    import gc
    import runpy
    import threading
    import time

    import fulmen.cli
    import fulmen.llm
    import fulmen.server  # noqa: F401

    sys.path[0] = ""  # as for -c and -m; it was this file's folder
    gc.freeze()
    parent = _Parent(path)
    print("ready", flush=True)
    arguments = parent.serve()
    time.tzset()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        number = ("stdin", "stdout", "stderr").index(name)
        errors = "backslashreplace" if name == "stderr" else None
        buffering = 1 if name == "stderr" or (mode == "w" and os.isatty(number)) else -1
        stream = open(number, mode, buffering, "utf-8", errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    kind, what, *rest = arguments
    code = 0
    try:
        if kind == "-m":
            sys.argv = [what, *rest]
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *rest]
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    # Python's own end, but for clearing all modules: that would copy all of the parent's memory.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):  # else Python says so, and ends with 120
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 255)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        _run(sys.argv[2], sys.argv[3:])
    else:
        _parent_main(sys.argv[2])
