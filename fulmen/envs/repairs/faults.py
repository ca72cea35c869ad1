"""Faults of one span: each is a small change of a text.

The syntax tree says where, the text is changed in place, so all that is around the fault stays as
it was written. Formatted strings are passed over: before Python 3.12 nobody says where they are.
"""

import ast
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

_COMPARISONS: Final = {
    **{"<": ("<=", ">"), "<=": ("<", ">="), ">": (">=", "<"), ">=": (">", "<=")},
    **{"==": ("!=",), "!=": ("==",), "in": ("not in",), "not in": ("in",)},
    **{"is": ("is not",), "is not": ("is",)},
}
_SIGNS: Final = {
    **{"+": ("-",), "-": ("+",), "*": ("+",), "//": ("%", "*"), "%": ("//",), "/": ("*",)},
}
_NAMES: Final = {
    **{"min": "max", "max": "min", "any": "all", "all": "any", "lower": "upper"},
    **{"lstrip": "rstrip", "rstrip": "lstrip", "ljust": "rjust", "startswith": "endswith"},
    **{"partition": "rpartition", "rpartition": "partition", "isalnum": "isalpha"},
    **{"isalpha": "isalnum", "isdigit": "isalnum", "strip": "rstrip"},
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A change of one span of a text."""

    start: int
    stop: int
    text: str
    line: int
    """Line of the faulty text, from 1; the line where one is missing"""
    kind: str
    """Kind of change, such as comparison or missing"""

    def put_into(self, source: str) -> str:
        """Return the text with the fault."""
        return source[: self.start] + self.text + source[self.stop :]


def find_faults(source: str) -> list[Fault]:
    """Return the faults that may be put into a Python text in ASCII. Few of them make it another
    language, which shows once it is run."""
    finder = _Finder(source)
    found = [fault for node in _walk(ast.parse(source)) for fault in finder.faults(node)]
    unique = {(one.start, one.stop, one.text): one for one in found}
    return [unique[key] for key in sorted(unique)]


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all below it that have a place of their own."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.JoinedStr):
            yield from _walk(child)


class _Finder:
    """Faults of the nodes of one text."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._starts = [0]
        for line in io.StringIO(source, newline=""):  # a form feed ends no line of Python
            self._starts.append(self._starts[-1] + len(line))

    def faults(self, node: ast.AST) -> Iterator[Fault]:
        """Yield the faults of one node."""
        match node:
            case ast.Compare(left=left, comparators=[right]):
                yield from self._signs(left, right, _COMPARISONS, "comparison")
            case ast.BinOp(left=left, right=right):
                yield from self._signs(left, right, _SIGNS, "sign")
            case ast.BoolOp(values=values):
                swapped = {"and": ("or",), "or": ("and",)}
                for first, second in pairwise(values):
                    yield from self._signs(first, second, swapped, "condition")
                yield self._fault(self._end(values[-2]), self._end(values[-1]), "", "condition")
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield self._fault(self._start(node), self._start(operand), "", "condition")
            case ast.Constant(value=bool(value)):
                yield self._changed(node, str(not value), "constant")
            case ast.Constant(value=int(value)):
                for number in (value + 1, value - 1):
                    if number >= 0:
                        yield self._changed(node, str(number), "constant")
            case ast.Call():
                yield from self._calls(node)
            case ast.FunctionDef():
                yield from self._wrong_names(node)
        for name in ("body", "orelse"):
            block = getattr(node, name, None)
            if isinstance(block, list) and len(block) > 1:
                yield from self._missing(block)

    def _signs(
        self, left: ast.expr, right: ast.expr, swaps: Mapping[str, tuple[str, ...]], kind: str
    ) -> Iterator[Fault]:
        """Yield faults of the sign between two expressions."""
        start, stop = self._end(left), self._start(right)
        between = self._source[start:stop]
        words = sorted(swaps, key=lambda word: -len(word))
        pattern = "|".join(rf"\b{w}\b" if w[0].isalpha() else re.escape(w) for w in words)
        found = re.search(pattern, between)
        if found is not None and "\n" not in between:
            begin = start + found.start()
            for other in swaps[found[0]]:
                yield self._fault(begin, begin + len(found[0]), other, kind)

    def _calls(self, node: ast.Call) -> Iterator[Fault]:
        """Yield faults of a call's name and of the order of its arguments."""
        function = node.func
        name = getattr(function, "id", getattr(function, "attr", ""))
        if name in _NAMES:
            end = self._end(function)
            yield self._fault(end - len(name), end, _NAMES[name], "call")
        match node.args:
            case [ast.Name(id=one) as first, ast.Name(id=other) as second] if one != other:
                text = f"{other}, {one}"
                yield self._fault(self._start(first), self._end(second), text, "arguments")

    def _wrong_names(self, function: ast.FunctionDef) -> Iterator[Fault]:
        """Yield faults in which one of a function's own names stands for another."""
        own = [one.arg for one in function.args.args if one.arg != "self"]
        for node in _walk(function):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in own:
                for other in own:
                    if other != node.id:
                        yield self._changed(node, other, "name")

    def _missing(self, block: list[ast.stmt]) -> Iterator[Fault]:
        """Yield faults in which one statement of a block is left out."""
        for statement in block:
            is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            is_small = isinstance(
                statement, ast.AugAssign | ast.Expr | ast.Assign | ast.If | ast.Continue
            )
            num_lines = (statement.end_lineno or 0) - statement.lineno + 1
            if is_small and not is_text and num_lines <= 2:
                start = self._starts[statement.lineno - 1]
                stop = self._starts[statement.end_lineno or statement.lineno]
                yield self._fault(start, stop, "", "missing")

    def _start(self, node: ast.expr) -> int:
        return self._starts[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.expr) -> int:
        return self._starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)

    def _changed(self, node: ast.expr, text: str, kind: str) -> Fault:
        return self._fault(self._start(node), self._end(node), text, kind)

    def _fault(self, start: int, stop: int, text: str, kind: str) -> Fault:
        return Fault(start, stop, text, self._source.count("\n", 0, start) + 1, kind)
