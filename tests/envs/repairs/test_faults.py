"""Faults: one span each, still Python, and all that is known of them is true."""

import ast

import pytest

from fulmen.envs.repairs.faults import find_faults
from fulmen.envs.repairs.kinds import KINDS

SOURCES = [
    pytest.param(text, id=f"{kind.name}-{name}") for kind in KINDS for name, text in kind.modules
]


@pytest.mark.parametrize("source", SOURCES)
def test_each_fault_is_another_program_that_differs_on_its_line(source: str) -> None:
    faults = find_faults(source)
    assert len(faults) >= 15
    assert len({fault.kind for fault in faults}) >= 5
    assert faults == find_faults(source)
    num_wrong = 0
    for fault in faults:
        changed = fault.put_into(source)
        try:
            ast.parse(changed)
        except SyntaxError:
            num_wrong += 1
            continue
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
        before, after = source.split("\n"), changed.split("\n")
        assert before[: fault.line - 1] == after[: fault.line - 1]
        assert before[fault.line - 1] != after[fault.line - 1]
        if fault.kind != "missing":
            assert before[fault.line :] == after[fault.line :]
    assert num_wrong <= len(faults) // 10


def test_the_kinds_of_faults() -> None:
    source = (
        "def f(first, second):\n"
        '    """Text 1 < 2."""\n'
        "    if first < 3 and not second:\n"
        "        second += f(first, second)\n"
        "    return min(first, second)\n"
    )
    found = {
        (one.kind, one.put_into(source).split("\n")[one.line - 1].strip())
        for one in find_faults(source)
    }
    assert {
        ("comparison", "if first <= 3 and not second:"),
        ("constant", "if first < 4 and not second:"),
        ("condition", "if first < 3 or not second:"),
        ("condition", "if first < 3:"),
        ("condition", "if first < 3 and second:"),
        ("arguments", "second += f(second, first)"),
        ("call", "return max(first, second)"),
        ("name", "return min(second, second)"),
        ("missing", "return min(first, second)"),
    } <= found
    assert not any("Text" in line for _, line in found)
