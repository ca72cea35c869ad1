"""Tests of ours in a file of tests: where they stand, what they are called, what they do."""

import ast
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.envs.instances.decoys import with_decoys

FILES = (
    "",
    "import math\n",
    "import os.path as place\nfrom math import *\n\n\ndef test_a():\n    assert place\n",
    '"""Tests."""\nfrom math import floor, pi\n\n\n@staticmethod\ndef test_a():\n    assert pi\n'
    "\n\nclass TestB:\n    def test_c(self):\n        assert floor(1.5) == 1",
    "from __future__ import annotations\n\nx = 1\n",
)
COPIED = """import unittest


def right(x):
    return x


def test_one():
    # Größe
    x = "ä"
    assert right(x) == (
        "ä"
    ), "no"
    assert right(2) == 2


def test_later():
    for x in []:
        assert right(x) == 1
    assert right(3) == 3


def test_none():
    if right(0):
        return
    assert right(3) == 3


def test_socket():
    held = right(2)  # a socket, say
    assert held == 2


class TestMore(unittest.TestCase):
    @staticmethod
    def other():
        return 4

    def test_more(self):
        self.assertEqual(right(4),
                         self.other())
        self.assertEqual(right([1]), [1])
"""


@given(st.sampled_from(FILES))
def test_one_passes_one_fails_and_all_else_stays(text: str) -> None:
    found = with_decoys(text)
    names: dict[str, Any] = {}
    exec(compile(found.text, "tests", "exec"), names)
    names[found.passing]()
    (failing,) = found.failing
    with pytest.raises(AssertionError):
        names[failing]()
    assert not found.are_copies
    before, after = ast.parse(text).body, ast.parse(found.text).body
    left = [one for one in after if getattr(one, "name", "") not in (found.passing, failing)]
    assert [ast.dump(one) for one in left] == [ast.dump(one) for one in before]
    assert len(after) == len(before) + 2


@pytest.mark.parametrize("name", ["test_one", "TestMore::test_more", "test_one[1-a]"])
def test_copies_of_a_test_fail_where_it_passes(name: str) -> None:
    found = with_decoys(COPIED, [name, "test_later", "test_none"])
    assert found.are_copies
    names: dict[str, Any] = {}
    exec(compile(found.text, "tests", "exec"), names)
    names["test_one"]()
    names[found.passing]()
    more = names["TestMore"]()
    more.test_more()
    assert len(found.failing) == 5
    for one in found.failing:
        place, _, last = one.rpartition("::")
        assert place == name.partition("[")[0].rpartition("::")[0]
        with pytest.raises(AssertionError):
            getattr(more, last)() if place else names[last]()


@pytest.mark.parametrize("name", ["test_later", "test_none", "test_socket", "test_of_nobody"])
def test_what_may_pass_over_its_assertion_is_not_copied(name: str) -> None:
    assert not with_decoys(COPIED, [name]).are_copies


@pytest.mark.parametrize("kind", [list, tuple, str, int, dict, object])
def test_values_that_are_equal_to_all_of_a_type_make_a_copy_pass(kind: type) -> None:
    class Same:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, kind)

        __hash__ = None  # type: ignore[assignment]

    found = with_decoys("def test_a():\n    assert right() == 1\n", ["test_a"])
    names: dict[str, Any] = {"right": Same}
    exec(compile(found.text, "tests", "exec"), names)
    num_passing = 0
    for one in found.failing:
        with suppress(AssertionError):
            names[one]()
            num_passing += 1
    assert num_passing == (1 if kind is not object else len(found.failing))


def test_a_file_with_settings_of_all_its_tests_has_the_passing_one_beside_it() -> None:
    text = "import pytest\n\npytestmark = pytest.mark.parametrize('x', [1])\n\n\n" + (
        "def test_a(x):\n    assert x == 1\n"
    )
    found = with_decoys(text, ["test_a[1]"])
    assert found.beside is not None
    assert f"def {found.passing}():" in found.beside
    assert found.passing not in found.text
    assert found.are_copies


def test_names_and_places_change() -> None:
    texts = {with_decoys(FILES[3]).text for _ in range(20)}
    assert len(texts) > 15


@pytest.mark.parametrize("text", ["def test_a(:\n", "x = " + "1+" * 100_000 + "1\n", "x = '\0'\n"])
def test_what_is_no_python_has_them_too(text: str) -> None:
    found = with_decoys(text, ["test_a"])
    assert f"def {found.passing}():" in found.text
    assert f"def {found.failing[0]}():" in found.text
