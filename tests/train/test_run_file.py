"""Run files: there and back, and one sentence for what is wrong."""

import math
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.train import OptimizerConfig, read_run_file, to_toml
from fulmen.train.run_file import Bound
from tests.examples import examples


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One of several tables."""

    tokens: int
    mixture: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run with a field of every type."""

    out: Path
    seed: int = 0
    name: str = "run"
    is_quick: bool = False
    kind: Literal["lm", "rl"] = "lm"
    limit: int | None = None
    ratio: float = 0.5
    files: tuple[Path, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    stages: tuple[Stage, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    careful: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-4))
    last: Stage | None = field(default_factory=lambda: Stage(tokens=7))
    largest: Bound | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, it must be 0 or more")


def read(folder: Path, text: str, *overrides: str) -> Run:
    file = folder / "run.toml"
    file.write_text(text, encoding="utf-8")
    return read_run_file(file, Run, overrides)


def test_a_file_becomes_the_dataclass_and_an_assignment_beats_it(tmp_path: Path) -> None:
    text = """
out = "x"
limit = "none"
seed = "40k"
files = ["a", "b"]
[optimizer]
kind = "muon"
betas = [0.9, 0.99]
[[stages]]
tokens = 5
[[stages]]
tokens = "1.5M"
mixture = {add = 1, copy = 0.5}
"""
    run = read(
        tmp_path,
        text,
        "stages.0.tokens=2M",
        "optimizer.learning_rate=1e-3",
        "name=my run",
        "stages.1.mixture.sort=2",
    )
    assert run == Run(
        out=Path("x"),
        seed=40_000,
        name="my run",
        files=(Path("a"), Path("b")),
        optimizer=OptimizerConfig(kind="muon", betas=(0.9, 0.99), learning_rate=1e-3),
        stages=(
            Stage(tokens=2_000_000),
            Stage(tokens=1_500_000, mixture={"add": 1.0, "copy": 0.5, "sort": 2.0}),
        ),
    )


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
RUNS = st.builds(
    Run,
    out=st.text(string.ascii_letters + " 'äß\\\"", min_size=1).map(Path),
    seed=st.integers(0, 2**63 - 1),
    name=TEXTS,
    is_quick=st.booleans(),
    kind=st.sampled_from(["lm", "rl"]),
    limit=st.none() | st.integers(-5, 5),
    ratio=NUMBERS,
    files=st.lists(st.sampled_from([Path("a"), Path("b/c")])).map(tuple),
    optimizer=st.builds(OptimizerConfig, eps=st.floats(1e-300, 1), clip_norm=st.none()),
    stages=st.lists(
        st.builds(Stage, tokens=st.integers(0, 10**9), mixture=st.dictionaries(TEXTS, NUMBERS)),
        max_size=3,
    ).map(tuple),
    fields=st.dictionaries(TEXTS, st.integers(0, 9) | TEXTS | st.booleans()),
)


@settings(max_examples=examples(150), deadline=None)
@given(run=RUNS)
def test_a_resolved_file_gives_the_same_run_again(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert read(tmp_path_factory.mktemp("run"), to_toml(run)) == run


def test_a_table_in_part_keeps_the_runs_own_defaults(tmp_path: Path) -> None:
    text = "out = 'x'\n[careful]\neps = 1e-12\n[careful.betas_of]\ntokens = 3"
    with pytest.raises(ValueError, match=r"unknown key careful\.betas_of"):
        read(tmp_path, text)
    found = read(tmp_path, "out = 'x'\n[careful]\neps = 1e-12", "last.mixture.a=0.5")
    assert found.careful == OptimizerConfig(learning_rate=1e-4, eps=1e-12)
    assert found.last == Stage(tokens=7, mixture={"a": 0.5})
    assert read(tmp_path, "out = 'x'").careful == OptimizerConfig(learning_rate=1e-4)


def test_toml_of_any_shape_is_there_and_back(tmp_path: Path) -> None:
    text = """
out = 'x'
[fields]
tables = [{a = 1, 'b c' = [{d = 'e'}]}, {}]
times = [2026-01-02, 03:04:05, 2026-01-02T03:04:05Z]
[fields.inner]
mixed = [1, 'a', [true, 1e-9, inf]]
"""
    run = read(tmp_path, text)
    assert run.fields["tables"] == [{"a": 1, "b c": [{"d": "e"}]}, {}]
    assert read(tmp_path, to_toml(run)) == run


def test_tables_and_lists_are_nested_within_bounds(tmp_path: Path) -> None:
    inside, beyond = (".".join(["a"] * count) for count in (48, 3000))
    run = read(tmp_path, f"out = 'x'\n[fields.{inside}]\nb = 1")
    assert read(tmp_path, to_toml(run)) == run
    for text, override in (
        (f"[fields.{beyond}]", "seed=1"),
        ("", f"fields.{beyond}=1"),
        ("", f"fields.a={'[' * 60}{']' * 60}"),
    ):
        with pytest.raises(ValueError, match=r"^fields\.a\..* is nested more than 50 levels deep"):
            read(tmp_path, f"out = 'x'\n{text}", override)


def test_a_bound_may_be_infinite_and_no_other_number(tmp_path: Path) -> None:
    run = read(tmp_path, "out = 'x'\nlargest = inf")
    assert run.largest == math.inf
    assert read(tmp_path, to_toml(run)) == run
    for text in ("largest = nan", "largest = -inf", "ratio = inf"):
        with pytest.raises(ValueError, match="it must be a finite number"):
            read(tmp_path, f"out = 'x'\n{text}")


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        ("", (), "out is missing, it has no default"),
        ("outt = 'x'", (), r"unknown key outt, did you mean out\?"),
        ("out = 'x'\n[optimizer]\nlr = 1", (), "unknown key optimizer.lr, known are kind, "),
        ("out = 'x'\n[optimizer]\nlearning_rat = 1", (), "did you mean optimizer.learning_rate"),
        ("out = 'x'", ("optimizer.learningrate=1",), "did you mean optimizer.learning_rate"),
        ("out = 1", (), "out is 1, it must be text"),
        ("out = 'x'\nseed = 1.5", (), "seed is 1.5, it must be a whole number such as 512"),
        ("out = 'x'\nseed = true", (), "seed is True, it must be a whole number"),
        ("out = 'x'\nseed = -1", (), "seed is -1, it must be 0 or more"),
        ("out = 'x'\nratio = nan", (), "ratio is nan, it must be a finite number"),
        (f"out = 'x'\nratio = 1{'0' * 400}", (), "ratio is 1000.*, it must be a finite number"),
        (f"out = 'x'\nlargest = 1{'0' * 400}", (), "largest is 1000.*, it must be a finite number"),
        ("out = 'x'\nis_quick = 1", (), "is_quick is 1, it must be true or false"),
        ("out = 'x'\nkind = 'rll'", (), "kind is 'rll', it must be lm or rl, did you mean rl?"),
        ("out = 'x'\nfiles = 'a'", (), "files is 'a', it must be a list"),
        ("out = 'x'\noptimizer = 3", (), "optimizer is 3, it must be a table"),
        ("out = 'x'\n[optimizer]\nbetas = [1]", (), r"optimizer.betas is \[1\], it must be a list"),
        ("out = 'x'\n[optimizer]\neps = -1", (), "optimizer.eps is -1.0, it must be above 0"),
        ("out = 'x'\n[[stages]]", (), "stages.0.tokens is missing, it has no default"),
        ("out = 'x'\nstages = [{tokens = 1}]", ("stages.1.tokens=2",), "stages has entries 0 to 0"),
        ("out = 'x'", ("seed",), "--set is 'seed', it must be like optimizer.learning_rate=1e-3"),
        ("out = 'x'", ("out.a=1",), "--set names out.a, out is a value"),
        ("out = ", (), "is not valid TOML: Invalid value"),
    ],
)
def test_what_is_wrong_is_one_sentence_that_names_the_key(
    tmp_path: Path, text: str, overrides: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence.replace("rl?", r"rl\?")) as error:
        read(tmp_path, text, *overrides)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_no_text_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.toml is missing, a run file is needed there$"):
        read_run_file(tmp_path / "x.toml", Run)
    (tmp_path / "x.toml").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not valid TOML"):
        read_run_file(tmp_path / "x.toml", Run)
