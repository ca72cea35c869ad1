"""Dockerfiles: what can be kept without containers, and the line of what cannot."""

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.envs.folders.dockerfile import Copy, read_dockerfile
from tests.examples import examples

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def written(folder: Path, text: str) -> Path:
    """Return a Dockerfile with that text, beside a file and a folder to copy."""
    (folder / "files").mkdir(exist_ok=True)
    (folder / "files/a.txt").write_text("a")
    (folder / "one.txt").write_text("1")
    path = folder / "Dockerfile"
    path.write_text(text)
    return path


def test_files_variables_and_folders_are_kept(tmp_path: Path) -> None:
    recipe = read_dockerfile(
        written(
            tmp_path,
            f"# a comment\nFROM docker.io/python:{HERE}-slim AS base\n\n"
            'ENV A=1 B="two words" \\\n    C=3\nenv OLD the rest\nWORKDIR /app\nWORKDIR src\n'
            'WORKDIR ..\nCOPY --chown=1:1 one.txt files deep/\nCOPY ["one.txt", "two.txt"]\n'
            'COPY *.txt .\nRUN mkdir -p out /app/in\nUSER nobody\nCMD ["bash"]\n',
        )
    )
    assert str(recipe.workdir) == "/app"
    assert recipe.variables == {"A": "1", "B": "two words", "C": "3", "OLD": "the rest"}
    assert recipe.copies == (
        Copy("one.txt", "deep", is_into=True),
        Copy("files", "deep", is_into=True),
        Copy("one.txt", "two.txt", is_into=False),
        Copy("one.txt", "", is_into=True),
    )
    assert recipe.folders == ("src", "out", "in")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no FROM"),
        ("WORKDIR /app", r"line 1 stands before an image: WORKDIR /app"),
        ("FROM nvidia/cuda", "line 1 needs an image other than a plain python, debian or ubuntu"),
        ("FROM python:3.99", "line 1 needs a newer Python than the one here"),
        ("FROM python:4", "line 1 needs a newer Python"),
        ("FROM python\nFROM python", "line 2 begins a second image"),
        ("FROM python\nRUN pip install numpy", "line 2 runs something, .*: RUN pip install numpy"),
        ("FROM python\nRUN mkdir a && rm -rf b", "line 2 has something that a shell computes"),
        ("FROM python\nRUN mkdir $HOME", "line 2 has something that a shell computes"),
        ("FROM python\nRUN mkdir -m 700 /a", "line 2 has -m, which is not read"),
        ("FROM python\nENTRYPOINT x", "line 2 cannot be kept without containers: ENTRYPOINT x"),
        ("FROM python\nARG A=1", "line 2 cannot be kept"),
        ("FROM python\nENV A=$B", "line 2 has a variable in a value"),
        ("FROM python\nENV 1=2", "line 2 has '1', which is no variable"),
        ("FROM python\nENV A='", "line 2 cannot be read"),
        ("FROM python\nWORKDIR /app\nCOPY --from=x /a .", "line 3 has --from=x"),
        ("FROM python\nWORKDIR /app\nCOPY gone.txt .", "line 3 names gone.txt, which is not there"),
        ("FROM python\nWORKDIR /app\nCOPY **/**/x .", "line 3 has \\*\\*, which is not read"),
        ("FROM python\nWORKDIR /app\nCOPY ../x .", "line 3 leads out of the context"),
        ("FROM python\nWORKDIR /app\nCOPY one.txt /etc/", "line 3 needs a place outside of"),
        ("FROM python\nWORKDIR /app\nRUN mkdir /data", "line 3 needs a place outside of"),
        ("FROM python\nADD https://a.b/c .", "line 2 fetches or unpacks"),
        ("FROM python\nADD one.tar.gz .", "line 2 fetches or unpacks"),
        ("FROM python\nCOPY <<end a\nx\nend", "line 2 holds a file"),
        ("FROM python\nCOPY one.txt", "line 2 names no file to copy"),
        ("FROM python\nCOPY [1] .", "line 2 has no list of texts"),
        ("FROM python\nENV A=1", "has no WORKDIR"),
        ("FROM python\nENV A=\\", "ends in the middle of line 2"),
        ("# escape=`\nFROM python", "line 1 changes what ends a line"),
    ],
)
def test_what_cannot_be_kept_is_one_sentence_with_its_line(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        read_dockerfile(written(tmp_path, text))
    assert len(str(refusal.value).splitlines()) == 1


@given(
    lines=st.lists(
        st.tuples(
            st.sampled_from(["FROM", "COPY", "ENV", "WORKDIR", "RUN", "ADD", "USER", "", "#"]),
            st.text("python:3. /a=1$\"'[]*-\\\\<>one.txt\n", max_size=20),
        ),
        max_size=6,
    )
)
@settings(max_examples=examples(200), deadline=None)
def test_any_text_is_a_recipe_within_the_folder_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    path = written(folder, "FROM python\n" + "\n".join(map(" ".join, lines)))
    try:
        recipe = read_dockerfile(path)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        return
    for place in (*recipe.folders, *(copy.destination for copy in recipe.copies)):
        assert not place.startswith("/")
        assert ".." not in Path(place).parts
