"""The program in a reply: the last closed block of Python."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.envs.code.block import MAX_PROGRAM, last_program
from tests.examples import examples


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("Here:\n```python\nprint(1)\n```\nThat is it.", "print(1)\n"),
        ("```py\na = 1\n```\nbetter:\n```Python3\na = 2\n```", "a = 2\n"),
        ("```\nprint(1)\n```", "print(1)\n"),
        ("```python\nprint(1)\n```\nprints\n```\n1\n```", "print(1)\n"),
        ("```python\nprint(1)\n```\n```text\n1\n```", "print(1)\n"),
        ("~~~~python\na = '''\n```\n~~~\n'''\n~~~~", "a = '''\n```\n~~~\n'''\n"),
        ("```python\r\nprint(1)\r\n```\r\n", "print(1)\n"),
        ("  ```python  \n  x = 1\n  ```", "  x = 1\n"),
        ("````python\nprint('```')\n```\n````", "print('```')\n```\n"),
        ("```python\nprint(1)\n```\n```python\nprint(2)", "print(1)\n"),
        ("```python\nprint(1)", None),
        ("print(1)", None),
        ("use ```python x``` there", None),
        ("```bash\nls\n```", None),
        ("```python\n\n```", None),
        ("```\n```", None),
        ("", None),
        ("```python\n" + "a" * (MAX_PROGRAM + 1) + "\n```", None),
    ],
)
def test_the_last_closed_block_of_python_counts(text: str, program: str | None) -> None:
    assert last_program(text) == program


_LINE = st.sampled_from(["print(1)", "", "x = '`'", "    y", "~~", "``", "# ``` no", "``` no"])


@settings(max_examples=examples(300), deadline=None)
@given(
    st.lists(_LINE, min_size=1),
    st.sampled_from(["```", "~~~", "`````"]),
    st.sampled_from(["", "python", "py", "PYTHON3"]),
    st.text(st.characters(exclude_characters="`~"), max_size=50),
)
def test_a_block_gives_its_lines_back(lines: list[str], fence: str, name: str, words: str) -> None:
    code = "\n".join(lines)
    text = f"{words}\n{fence}{name}\n{code}\n{fence}\n{words}"
    assert last_program(text) == (f"{code}\n" if code.strip() else None)


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.sampled_from(["```", "~~~", "````", "python", "\n", " ", "a", "\r\n", "\0"])))
def test_any_text_has_a_program_or_none(parts: list[str]) -> None:
    program = last_program("".join(parts))
    assert program is None or program.strip()
