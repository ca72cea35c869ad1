"""Runs tests that somebody wrote as Python, against a program in another process.

This file runs where nothing else of ours is, in the sandbox, as two processes. One has the tests;
the other has the program and not the tests, and answers calls:

    tests -> Remote(name)(arguments) -> pipe -> function of the program -> value -> pipe -> assert

Values of plain types go through the pipe as data, so nothing that the program makes of its process
(an exit, patched builtins, objects that are equal to everything) can make an assertion hold. Other
values stay where they are; the tests hold them by numbers, and can call them, read and set their
attributes and hand them back.

    {"setup": TEXT run with the tests, "names": [NAME, ...] that the tests take from the program,
     "program": [TEXT, ...] run one after the other, "tests": TEXT, "seconds": of the processor,
     "all_seconds": by the clock, "nonce": TEXT}
    -> {"passed": BOOL, "nonce": TEXT}, or {"fault": TEXT, "nonce": TEXT} where the tests fail
       before they ask anything of a program
"""

import builtins
import contextlib
import json
import os
import resource
import select
import sys
import time
import types

TYPE_CHECKING = False  # typing takes long to import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_LONGEST = 2**20
_LONGEST_FAULT = 1000
_SEQUENCES: "dict[str, Any]" = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_VALUES = {
    **{"datetime": "datetime", "date": "datetime", "time": "datetime", "timedelta": "datetime"},
    **{"Decimal": "decimal", "Fraction": "fractions"},
}
"""Types whose values are texts in a message, and their modules, which few tests need"""


class GoneError(BaseException):
    """The program's process does not answer any more; no `except` of the tests may catch it."""


def packed(value: "Any", hold: "Callable[[Any], int]") -> "Any":
    """Return a value as data for JSON. What has no plain type is given to `hold`, for a number."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return {"int": int.__repr__(value)}
    if isinstance(value, float):
        return {"float": float.__repr__(value)}
    if isinstance(value, str):
        return {"str": str.__str__(value)}
    if isinstance(value, bytes):
        return {"bytes": bytes.hex(value)}
    if isinstance(value, complex):
        return {"complex": complex.__repr__(value)}
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return {name: [packed(one, hold) for one in value]}
    if isinstance(value, dict):
        return {"dict": [[packed(k, hold), packed(v, hold)] for k, v in value.items()]}
    for name, module in _VALUES.items():
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(value, kind):
            if name == "timedelta":
                return {name: str(value // kind(microseconds=1))}
            return {name: str(getattr(kind, "isoformat", kind.__str__)(value))}
    return {"held": hold(value)}


def unpacked(data: "Any", held: "Callable[[int], Any]") -> "Any":
    """Return the value of data; `held` gives that of a number."""
    if data is None or isinstance(data, bool):
        return data
    ((name, inner),) = data.items()
    if name in _SEQUENCES:
        return _SEQUENCES[name]([unpacked(one, held) for one in inner])
    if name == "dict":
        return {unpacked(k, held): unpacked(v, held) for k, v in inner}
    if name == "bytes":
        return bytes.fromhex(inner)
    if name == "held":
        return held(inner)
    if name in _VALUES:
        kind = getattr(__import__(_VALUES[name]), name)
        if name == "timedelta":
            return kind(microseconds=int(inner))
        return getattr(kind, "fromisoformat", kind)(inner)
    plain: dict[str, Any] = {"int": int, "float": float, "str": str, "complex": complex}
    return plain[name](inner)


class Line:
    """Messages to and from another process, a line each."""

    def __init__(self, end: int, start: int, deadline: float) -> None:
        self.end, self.start, self.deadline = end, start, deadline
        self.rest = b""
        self.is_used = False

    def send(self, message: object) -> None:
        self.is_used = True
        content = json.dumps(message).encode() + b"\n"
        while content:
            content = content[os.write(self.start, content) :]

    def receive(self) -> "Any":
        """Return the next message. Raises GoneError if there is none, in time and of good size."""
        while b"\n" not in self.rest:
            left = max(self.deadline - time.monotonic(), 0)
            if len(self.rest) > _LONGEST or not select.select([self.end], [], [], left)[0]:
                raise GoneError
            piece = os.read(self.end, _LONGEST)
            if not piece:
                raise GoneError
            self.rest += piece
        line, _, self.rest = self.rest.partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise GoneError from None


def _new_module(name: str) -> "dict[str, Any]":
    """Return the names of a new module that is loaded, as dataclasses need theirs to be."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    return vars(module)


# The side of the tests


class Remote:
    """A value that the program's process holds."""

    _line: "Line"
    _number: int

    def __init__(self, line: Line, number: int) -> None:
        self.__dict__.update(_line=line, _number=number)

    def _ask(self, do: str, *arguments: object, **named: object) -> "Any":
        def hold(value: object) -> int:
            if not isinstance(value, Remote):
                raise TypeError(f"{type(value).__name__} cannot be handed to the program")
            return value._number

        pack = [packed(list(arguments), hold), packed(named, hold)]
        try:
            self._line.send([do, self._number, *pack])
            answer = self._line.receive()
        except OSError:
            raise GoneError from None
        if "error" in answer:
            raise _error(str(answer["error"]))
        try:
            return unpacked(answer["value"], lambda number: Remote(self._line, number))
        except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError, RecursionError):
            raise GoneError from None

    def __call__(self, *arguments: object, **named: object) -> object:
        return self._ask("call", *arguments, **named)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", name)

    def __setattr__(self, name: str, value: object) -> None:
        self._ask("set", name, value)

    def __iter__(self) -> "Iterator[Any]":
        return iter(self._ask("list"))

    def __len__(self) -> int:
        return int(self._ask("size"))

    def __getitem__(self, place: object) -> object:
        return self._ask("item", place)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._number == other._number

    def __hash__(self) -> int:
        return hash(self._number)


def fault(job: "dict[str, Any]") -> "str | None":
    """Return the error that the tests end with before they ask anything of a program, if they do.

    No program runs yet, so none can be the cause.
    """
    line = Line(-1, -1, 0.0)
    try:
        _run_tests(job, line, {name: number for number, name in enumerate(job["names"])})
    except BaseException as error:
        if not line.is_used:
            return f"{type(error).__name__}: {error}"
    return None


def _run_tests(job: "dict[str, Any]", line: Line, numbers: "dict[str, int]") -> None:
    space = _new_module("tests")
    exec(compile(job["setup"], "setup.py", "exec"), space)
    # No other name that the program might tell: it could take the place of a builtin.
    space.update({name: Remote(line, numbers[name]) for name in job["names"] if name in numbers})
    exec(compile(job["tests"], "tests.py", "exec"), space)


def _error(name: str) -> Exception:
    """Return the builtin error of a name, or its nearest base that takes a sentence; but none that
    would end a loop of the tests early."""
    found = getattr(builtins, name, None)
    if not isinstance(found, type) or not issubclass(found, Exception):
        return Exception(name)
    if issubclass(found, (StopIteration, StopAsyncIteration)):
        return RuntimeError(name)  # as a generator tells it
    for kind in found.__mro__:
        with contextlib.suppress(TypeError):
            error: Exception = kind("the program raised it")
            return error
    return Exception(name)


def _kind_of(error: Exception) -> str:
    """Return the name of an error, or that of its nearest base which is a builtin."""
    names = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
    return next(names, "Exception")


def passes(job: "dict[str, Any]") -> bool:
    """Return whether the tests pass with the program."""
    asked_end, asked = os.pipe()
    said, said_start = os.pipe()
    command = [sys.executable, "-I", "-S", "-B", __file__]
    actions = [(os.POSIX_SPAWN_DUP2, asked_end, 0), (os.POSIX_SPAWN_DUP2, said_start, 1)]
    os.posix_spawn(sys.executable, command, dict(os.environ), file_actions=actions)
    os.close(asked_end)
    os.close(said_start)
    line = Line(said, asked, time.monotonic() + job["all_seconds"])
    try:
        line.send([job["program"], job["names"], job["seconds"]])
        numbers = line.receive()
        _run_tests(job, line, numbers)
    except BaseException:  # an assertion that does not hold, or whatever else kept it from that
        return False
    return True


def main(path: str) -> None:
    """Take a job, and write what came of it to stdout."""
    with open(path, "rb") as file:
        job = json.load(file)
    os.unlink(path)
    _hide()
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    found = fault(job)  # tests that hang or end the process here are not the program's failure
    os.write(out, b"The program runs.\n")
    verdict = {"passed": passes(job)} if found is None else {"fault": found[:_LONGEST_FAULT]}
    os.write(out, json.dumps({**verdict, "nonce": job["nonce"]}).encode())
    os._exit(0)


def _hide() -> None:
    """Close this process's memory and descriptors to all others of its user."""
    import ctypes

    if ctypes.CDLL(None).prctl(4, 0, 0, 0, 0):  # PR_SET_DUMPABLE
        sys.exit("this process cannot be hidden")


# The side of the program


def serve() -> None:
    """Run a program, then answer what is asked of it."""
    line = Line(os.dup(0), os.dup(1), time.monotonic() + 3600)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    texts, names, seconds = line.receive()
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # they are of site, which -S leaves out
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    space = _new_module("solution")
    for text in texts:
        exec(compile(text, "solution.py", "exec"), space)
    objects = [space[name] for name in names if name in space]
    line.send({name: number for number, name in enumerate(n for n in names if n in space)})

    def hold(value: object) -> int:
        objects.append(value)
        return len(objects) - 1

    while True:
        do, number, arguments, named = line.receive()
        try:
            value = _answer(
                do,
                objects[number],
                unpacked(arguments, objects.__getitem__),
                unpacked(named, objects.__getitem__),
            )
            message = {"value": packed(value, hold)}
        except Exception as error:
            message = {"error": _kind_of(error)}
        line.send(message)


def _answer(do: str, one: "Any", arguments: "list[Any]", named: "dict[str, Any]") -> "Any":
    if do == "call":
        return one(*arguments, **named)
    if do == "get":
        return getattr(one, arguments[0])
    if do == "set":
        return setattr(one, arguments[0], arguments[1])
    if do == "list":
        return list(one)
    if do == "size":
        return len(one)
    return one[arguments[0]]


if __name__ == "__main__":
    main(sys.argv[1]) if len(sys.argv) > 1 else serve()
