"""Our own programs, right or with a fault, run in this process to see what they answer.

Only texts that this package wrote are run here; what a model wrote runs in the sandbox
(`outcomes.py`). Loops and calls are counted, and sums and products measured, so a fault that never
ends, or whose numbers grow and grow, is found out.
"""

import ast
import builtins
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Final

from fulmen.envs.repairs.kind import Probe
from fulmen.envs.repairs.outcomes import outcome

MAX_TICKS: Final = 20_000
"""Rounds of loops and calls that a probe may take; right programs take some hundreds"""


MAX_BITS: Final = 2_000
"""Largest number"""
MAX_LENGTH: Final = 100_000
"""Longest text or list"""


class EndlessError(BaseException):
    """A program that took too many rounds, or grew too large; no `except` of its own may catch
    it."""


class _Clock:
    def __init__(self) -> None:
        self.left = MAX_TICKS

    def tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise EndlessError


def _small(value: Any) -> Any:
    """Return a value. Raises EndlessError if it is large."""
    is_large = (
        value.bit_length() > MAX_BITS
        if isinstance(value, int)
        else isinstance(value, str | list | tuple) and len(value) > MAX_LENGTH
    )
    if is_large:
        raise EndlessError
    return value


def _times(left: Any, right: Any) -> Any:
    """Return a product. Raises EndlessError if it would be large."""
    for one, other in ((left, right), (right, left)):
        is_long = isinstance(one, str | list | tuple) and isinstance(other, int)
        if is_long and len(one) * other > MAX_LENGTH:
            raise EndlessError
    return _small(left * right)


class _Bounded(ast.NodeTransformer):
    """Puts a tick at the beginning of every loop and function, and a measure to what can grow."""

    def _ticking(self, node: Any) -> Any:
        self.generic_visit(node)
        node.body.insert(0, ast.Expr(_call("__tick__")))
        return node

    visit_While = visit_For = visit_FunctionDef = _ticking

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        match node.op:
            case ast.Mult():
                return _call("__times__", node.left, node.right)
            case ast.Add() | ast.Pow() | ast.LShift():
                return _call("__small__", node)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AugAssign:
        self.generic_visit(node)
        node.value = _call("__small__", node.value)
        return node


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def answers(modules: Mapping[str, str], probes: Sequence[Probe]) -> list[str]:
    """Return what modules, helpers first, answer to probes. Raises EndlessError."""
    clock, loaded = _Clock(), dict[str, ModuleType]()

    def importer(name: str, *_: object) -> ModuleType:
        return loaded[name]

    bounds = {"__tick__": clock.tick, "__small__": _small, "__times__": _times}
    space = {**vars(builtins), "__import__": importer, **bounds}
    names: dict[str, object] = {}
    for name, text in modules.items():
        tree = ast.fix_missing_locations(_Bounded().visit(ast.parse(text)))
        module = loaded[name] = ModuleType(name)
        vars(module)["__builtins__"] = space
        exec(compile(tree, name, "exec"), vars(module))
        names |= {key: value for key, value in vars(module).items() if key[:2] != "__"}
    found = []
    for probe in probes:
        clock.left = MAX_TICKS
        found.append(outcome(list(probe.lines), probe.expression, names))
    return found
