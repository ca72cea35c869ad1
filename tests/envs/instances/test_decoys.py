"""Two tests of ours in a file of tests: where they stand, what they are called, what they do."""

import ast
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


@given(st.sampled_from(FILES))
def test_one_passes_one_fails_and_all_else_stays(text: str) -> None:
    found = with_decoys(text)
    names: dict[str, Any] = {}
    exec(compile(found.text, "tests", "exec"), names)
    names[found.passing]()
    with pytest.raises(AssertionError):
        names[found.failing]()
    before, after = ast.parse(text).body, ast.parse(found.text).body
    ours = {found.passing, found.failing}
    left = [one for one in after if getattr(one, "name", "") not in ours]
    assert [ast.dump(one) for one in left] == [ast.dump(one) for one in before]
    assert len(after) == len(before) + 2


def test_names_and_places_change() -> None:
    texts = {with_decoys(FILES[3]).text for _ in range(20)}
    assert len(texts) > 15


def test_what_is_no_python_has_them_too() -> None:
    found = with_decoys("def test_a(:\n")
    assert f"def {found.passing}():" in found.text
    assert f"def {found.failing}():" in found.text
