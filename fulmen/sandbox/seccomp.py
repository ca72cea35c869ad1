"""The system calls that nothing in a sandbox may make, as a filter that the kernel runs.

The filter is classic BPF, assembled here, so that no library stands between the table below and the
kernel. It takes away what changes mounts, namespaces, modules, clocks or other processes' memory,
the large young interfaces in which most of the kernel's holes were found, and every kind of socket
but Unix, IPv4, IPv6 and routing netlink. No file gets a setuid or setgid bit: inside it would be
without effect, but the file is the caller's outside. Everything else is left to the mounts and
namespaces.
"""

import errno
import platform
import struct
from typing import Final

EVERYWHERE: Final = {
    # mounts and roots
    **{"mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51)},
    **{"open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430)},
    **{"fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433)},
    **{"mount_setattr": (442, 442), "open_tree_attr": (467, 467)},
    **{
        "quotactl": (179, 60),
        "quotactl_fd": (443, 443),
        "swapon": (167, 224),
        "swapoff": (168, 225),
    },
    # namespaces
    **{"unshare": (272, 97), "setns": (308, 268)},
    # other processes
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},
    **{"kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440)},
    **{"migrate_pages": (256, 238), "move_pages": (279, 239)},
    # files by number instead of by path
    **{"name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265)},
    # keys, which no namespace separates
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)},
    # the kernel itself
    **{"bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282)},
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142)},
    **{"init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106)},
    **{"syslog": (103, 116), "acct": (163, 89), "vhangup": (153, 58), "lookup_dcookie": (212, 18)},
    **{"fanotify_init": (300, 262), "fanotify_mark": (301, 263), "nfsservctl": (180, 42)},
    **{"memfd_secret": (447, 447), "sethostname": (170, 161), "setdomainname": (171, 162)},
    # clocks
    **{"settimeofday": (164, 170), "clock_settime": (227, 112)},
    **{"adjtimex": (159, 171), "clock_adjtime": (305, 266)},
}
"""System calls denied with EPERM: their numbers on x86-64 and on aarch64"""

ONLY_X86_64: Final = {
    **{"uselib": 134, "_sysctl": 156, "iopl": 172, "ioperm": 173, "modify_ldt": 154},
    **{"create_module": 174, "get_kernel_syms": 177, "query_module": 178},
}
"""System calls that aarch64 never had"""

AS_MISSING: Final = {
    **{"clone3": (435, 435)},  # its flags lie in memory, where no filter sees them
    **{"openat2": (437, 437)},  # and the mode of its file
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
}
"""System calls denied with ENOSYS: a library then does the same by older ones"""

CLONE: Final = (56, 220)
IOCTL: Final = (16, 29)
SOCKET: Final = (41, 198)
SOCKETPAIR: Final = (53, 199)
PRLIMIT: Final = (302, 261)
PERSONALITY: Final = (135, 92)

MODES: Final = {
    **{"chmod": (90, None, 1), "fchmod": (91, 52, 1), "fchmodat": (268, 53, 2)},
    **{"fchmodat2": (452, 452, 2), "creat": (85, None, 1)},
    **{"mkdir": (83, None, 1), "mkdirat": (258, 34, 2)},
    **{"mknod": (133, None, 1), "mknodat": (259, 33, 2)},
}
"""System calls with the mode of a file: their numbers, None for one that aarch64 never had, and
which argument it is"""
OPENS: Final = {"open": (2, None, 1), "openat": (257, 56, 2)}
"""System calls that have a mode behind their flags if they make a file, and which argument these
are"""

_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables, and the kernel's name of an architecture (AUDIT_ARCH)"""
_X32: Final = 0x40000000
"""Bit of a system call of x32, the other calling convention of x86-64"""
_NAMESPACES: Final = 0x7E020000
"""CLONE_NEW* for mounts, cgroups, uts, ipc, users, pids and networks"""
_STUFFING: Final = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX, which type into a terminal"""
_FAMILIES: Final = {"unix": 1, "inet": 2, "inet6": 10}
_NETLINK: Final = 16
_MAKES_FILE: Final = 0o20000000 | 0o100
"""O_TMPFILE, without the O_DIRECTORY in it, and O_CREAT"""
_SET_ID: Final = 0o6000
"""Setuid and setgid"""
_PERSONALITIES: Final = (0, 8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)
"""Linux, 32 bits, uname as 2.6, addresses not random, and the question which it is"""

_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Places in the kernel's struct seccomp_data; little-endian, so an argument's low half is first"""


def _deny(number: int) -> int:
    return 0x00050000 | number


def filter_program(machine: str | None = None, *, has_unix_sockets: bool = True) -> bytes:
    """Return the filter for a machine ("x86_64" or "aarch64"; this one if None).

    Raises ValueError for a machine of which we have no numbers. Without `has_unix_sockets` no Unix
    socket can be made but a nameless pair.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise ValueError(f"the sandbox knows the system calls of x86_64 and aarch64, not {machine}")
    column, architecture = _ARCHITECTURES[machine]
    program = _Program()
    program.load(_ARCHITECTURE)
    program.unless(_EQUAL, architecture, _KILL)
    program.load(_NUMBER)
    if machine == "x86_64":
        program.when(_AT_LEAST, _X32, _KILL)
        for number in ONLY_X86_64.values():
            program.when(_EQUAL, number, _deny(errno.EPERM))
    for numbers in EVERYWHERE.values():
        program.when(_EQUAL, numbers[column], _deny(errno.EPERM))
    for numbers in AS_MISSING.values():
        program.when(_EQUAL, numbers[column], _deny(errno.ENOSYS))

    clone = _Program()
    clone.load_argument(0)
    clone.when(_ANY_BIT, _NAMESPACES, _deny(errno.EPERM))
    program.for_call(CLONE[column], clone)

    ioctl = _Program()
    ioctl.load_argument(1)
    for command in _STUFFING:
        ioctl.when(_EQUAL, command, _deny(errno.EPERM))
    program.for_call(IOCTL[column], ioctl)

    for *both, argument in MODES.values():
        mode = _Program()
        mode.load_argument(argument)
        mode.when(_ANY_BIT, _SET_ID, _deny(errno.EPERM))
        program.for_call(both[column], mode)
    for *both, argument in OPENS.values():
        opening = _Program()
        opening.load_argument(argument)
        opening.unless(_ANY_BIT, _MAKES_FILE, _ALLOW)  # the mode is not looked at then
        opening.load_argument(argument + 1)
        opening.when(_ANY_BIT, _SET_ID, _deny(errno.EPERM))
        program.for_call(both[column], opening)

    # A limit set on another process could stop the supervisor.
    prlimit = _Program()
    prlimit.load_argument(0)
    prlimit.unless(_EQUAL, 0, _deny(errno.EPERM))
    program.for_call(PRLIMIT[column], prlimit)

    personality = _Program()
    personality.load_argument(0)
    for kind in _PERSONALITIES:
        personality.when(_EQUAL, kind, _ALLOW)
    personality.always(_deny(errno.EPERM))
    program.for_call(PERSONALITY[column], personality)

    # AF_VSOCK reaches the host of a virtual machine and no namespace separates it; others are old
    # code that only a privileged program ever needs.
    socket = _Program()
    socket.load_argument(0)
    for family in _FAMILIES.values():
        if family != _FAMILIES["unix"] or has_unix_sockets:
            socket.when(_EQUAL, family, _ALLOW)
    socket.unless(_EQUAL, _NETLINK, _deny(errno.EAFNOSUPPORT))
    socket.load_argument(2)
    socket.unless(_EQUAL, 0, _deny(errno.EPROTONOSUPPORT))  # NETLINK_ROUTE
    program.for_call(SOCKET[column], socket)

    pair = _Program()
    pair.load_argument(0)
    pair.unless(_EQUAL, _FAMILIES["unix"], _deny(errno.EAFNOSUPPORT))
    program.for_call(SOCKETPAIR[column], pair)

    program.always(_ALLOW)
    return program.assembled()


class _Program:
    """Instructions of classic BPF in the order they run; every jump goes over a few of them."""

    def __init__(self) -> None:
        self._instructions: list[tuple[int, int, int, int]] = []

    def load(self, place: int) -> None:
        self._instructions.append((_LOAD, 0, 0, place))

    def load_argument(self, number: int) -> None:
        """Load the low half of an argument: the kernel reads no more of those we look at."""
        self.load(_ARGUMENTS + 8 * number)

    def when(self, test: int, value: int, verdict: int) -> None:
        self._instructions += [(test, 0, 1, value), (_RETURN, 0, 0, verdict)]

    def unless(self, test: int, value: int, verdict: int) -> None:
        self._instructions += [(test, 1, 0, value), (_RETURN, 0, 0, verdict)]

    def always(self, verdict: int) -> None:
        self._instructions.append((_RETURN, 0, 0, verdict))

    def for_call(self, number: int | None, block: "_Program") -> None:
        """Add a block for one system call, at whose end the call is allowed; None for none."""
        if number is None:
            return
        block.always(_ALLOW)
        self._instructions.append((_EQUAL, 0, len(block._instructions), number))
        self._instructions += block._instructions

    def assembled(self) -> bytes:
        return b"".join(struct.pack("<HBBI", *one) for one in self._instructions)
