"""Files of tests without some of their functions."""

import ast
from collections.abc import Collection, Iterator


def spans_of_tests(text: str) -> dict[str, tuple[int, int]]:
    """Return the first and last line, from 1, of each test function that can be taken out of a
    file: by name, with its class before, as in `TestA::test_b`. A function that is all its class
    has is not among them."""
    return dict(_spans(ast.parse(text).body, ""))


def without_tests(text: str, names: Collection[str]) -> str:
    """Return a file without some of the functions that `spans_of_tests` finds."""
    spans = spans_of_tests(text)
    gone = {line for name in names for line in range(spans[name][0], spans[name][1] + 1)}
    lines = text.split("\n")
    return "\n".join(line for number, line in enumerate(lines, start=1) if number not in gone)


def _spans(body: list[ast.stmt], before: str) -> Iterator[tuple[str, tuple[int, int]]]:
    seen = [one.name for one in body if isinstance(one, ast.FunctionDef)]
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _spans(node.body, f"{before}{node.name}::")
        elif isinstance(node, ast.FunctionDef) and seen.count(node.name) == 1 and len(body) > 1:
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if node.name.startswith("test"):
                yield before + node.name, (first, node.end_lineno or node.lineno)
