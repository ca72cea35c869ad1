"""Our own programs, right or with a fault, run in this process to see what they answer.

Only texts that this package wrote are run here; what a model wrote runs in the sandbox
(`outcomes.py`). Loops and calls are counted, so a fault that never ends is found out.
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


class EndlessError(BaseException):
    """A program that took too many rounds; no `except` of its own may catch it."""


class _Clock:
    def __init__(self) -> None:
        self.left = MAX_TICKS

    def tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise EndlessError


class _Counted(ast.NodeTransformer):
    """Puts a tick at the beginning of every loop and function."""

    def _counted(self, node: Any) -> Any:
        self.generic_visit(node)
        call = ast.Call(ast.Name("__tick__", ast.Load()), [], [])
        node.body.insert(0, ast.Expr(call))
        return node

    visit_While = visit_For = visit_FunctionDef = _counted


def answers(modules: Mapping[str, str], probes: Sequence[Probe]) -> list[str]:
    """Return what modules, helpers first, answer to probes. Raises EndlessError."""
    clock, loaded = _Clock(), dict[str, ModuleType]()

    def importer(name: str, *_: object) -> ModuleType:
        return loaded[name]

    space = {**vars(builtins), "__import__": importer, "__tick__": clock.tick}
    names: dict[str, object] = {}
    for name, text in modules.items():
        tree = ast.fix_missing_locations(_Counted().visit(ast.parse(text)))
        module = loaded[name] = ModuleType(name)
        vars(module)["__builtins__"] = space
        exec(compile(tree, name, "exec"), vars(module))
        names |= {key: value for key, value in vars(module).items() if key[:2] != "__"}
    found = []
    for probe in probes:
        clock.left = MAX_TICKS
        found.append(outcome(list(probe.lines), probe.expression, names))
    return found
