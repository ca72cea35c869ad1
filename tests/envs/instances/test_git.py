"""Patches: what they hold is what is put there again, whatever the files are."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fulmen.envs.instances.git import apply_patch, changed_paths, is_test, make_patch
from tests.examples import examples

NAMES = st.sampled_from(
    ["a.py", "b/c.py", "b/d e.txt", "\u00e9.txt", "[x]*?.bin", 'q"\\.txt', ".gitattributes"]
)
CONTENTS = st.binary(max_size=30) | st.sampled_from(
    [b"a\r\nb\n", b"a\nb\r\n", b"no end", b"caf\xe9\n", b"\0\xff", b"* text=auto eol=crlf\n", b""]
)
TREES = st.dictionaries(NAMES, CONTENTS, max_size=4)


def written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@given(before=TREES, after=TREES)
@example(before={".gitattributes": b"* text=auto eol=crlf\n"}, after={"a.py": b"a\r\nb\n"})
@example(before={"a.py": b"caf\xe9\n"}, after={"a.py": b"caf\xe8\n", "b/c.py": b"text\n"})
@settings(
    max_examples=examples(30),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_patch_makes_of_one_tree_the_other(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, bytes], after: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("trees")
    old, new = written(folder / "old", before), written(folder / "new", after)
    patch = make_patch(old, new)
    patch.encode()
    assert (patch == "") == (before == after)
    if patch:
        assert set(changed_paths(patch)) == {
            name for name in {**before, **after} if before.get(name) != after.get(name)
        }
        apply_patch(old, patch)
    assert read(old) == after


def test_modes_and_links_are_in_a_patch_and_ignored_files_are_not(tmp_path: Path) -> None:
    old = written(tmp_path / "old", {".gitignore": b"*.log\n", "kept.log": b"1\n", "run": b"a\n"})
    new = written(tmp_path / "new", {".gitignore": b"*.log\n", "kept.log": b"2\n", "run": b"a\n"})
    (new / "run").chmod(0o755)
    (new / "link").symlink_to("/etc/passwd")
    (new / "other.log").write_text("1")
    (new / "__pycache__").mkdir()
    (new / "__pycache__/a.pyc").write_text("1")
    patch = make_patch(old, new)
    assert set(changed_paths(patch)) == {"kept.log", "run", "link"}
    assert "root:" not in patch
    apply_patch(old, patch)
    assert (old / "run").stat().st_mode & 0o111
    assert (old / "link").is_symlink()


def test_parts_of_a_patch_are_passed_over(tmp_path: Path) -> None:
    old = written(tmp_path / "old", {"a[1].py": b"a\n", "a1.py": b"a\n"})
    new = written(tmp_path / "new", {"a[1].py": b"b\n", "a1.py": b"b\n"})
    apply_patch(old, make_patch(old, new), without=("a[1].py",))
    assert read(old) == {"a[1].py": b"a\n", "a1.py": b"b\n"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("tests/test_a.py", True),
        ("a_test.py", True),
        ("x/tests.py", True),
        ("conftest.py", True),
        ("pytest.ini", True),
        ("django/test/client.py", False),
        ("latest.py", False),
        ("tests/data.json", True),
        ("calc/tests/helpers.py", True),
        ("my_tests/data.json", False),
    ],
)
def test_paths_of_tests(path: str, expected: bool) -> None:
    assert is_test(path) is expected
