"""System calls that Python has no name for.

Used on both sides, with nothing but the standard library.
"""

import contextlib
import ctypes
import os
import struct
from typing import Final

_PR_SET_DUMPABLE: Final = 4
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_LANDLOCK_VERSION: Final = 1
_SCOPE_ABSTRACT: Final = 1
_SCOPES_SINCE: Final = 6
"""Version of Landlock that can keep a process from abstract Unix sockets (Linux 6.12)"""


def set_dumpable(value: bool) -> None:
    """Let processes of the same user read this one's memory and descriptors, or keep them out."""
    _call("prctl", _PR_SET_DUMPABLE, int(value), 0, 0, 0)


def can_leave_abstract_sockets() -> bool:
    """Return whether this kernel has `leave_abstract_sockets`."""
    with contextlib.suppress(OSError, AttributeError):
        return _call("syscall", _LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION) >= _SCOPES_SINCE
    return False


def leave_abstract_sockets() -> None:
    """Keep this process and its children from abstract Unix sockets of all others, for good."""
    attributes = struct.pack("QQQ", 0, 0, _SCOPE_ABSTRACT)
    ruleset = _call("syscall", _LANDLOCK_CREATE, attributes, len(attributes), 0)
    try:
        _call("syscall", _LANDLOCK_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _call(function: str, *arguments: int | bytes | None) -> int:
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = getattr(ctypes.CDLL(None, use_errno=True), function)(*wide)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
