"""--json prints one JSON value whose keys the command's help names."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fulmen.quantize import Drift
from fulmen.sessions import SessionStore
from tests.cli.test_cli import called
from tests.cli.test_help import help_of
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("m2"), "m2")


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    flags = ("--model", folder, "--session", "a", "--store", root, "--max-tokens", "4")
    assert called("chat", "Hello", *flags).returncode == 0
    return root


def value_of(*arguments: str | Path, code: int = 0) -> Any:
    run = called(*arguments, "--json")
    assert run.returncode == code, run.stderr
    assert len(run.stdout.splitlines()) == 1
    return json.loads(run.stdout)


def documented(*command: str) -> set[str]:
    """Return the words of the paragraphs about JSON in a command's help."""
    return set(re.findall(r"[a-z][a-z_0-9]+", help_of(*command).split("JSON", 1)[1]))


def test_models_are_listed_and_shown_as_json(folder: Path) -> None:
    cards = value_of("models", "list")
    by_name = {card["name"]: card for card in cards}
    assert by_name["minimax-m1-80k"]["total_parameters"] == 456_089_655_296
    assert by_name["minimax-m2"]["context"] == 196_608
    shown = value_of("models", "show", "minimax-m1-80k", "--lang", "de")
    text = shown.pop("text")
    assert text["licence"]
    assert shown == by_name["minimax-m1-80k"]
    keys = set(shown) | set(shown["paper"]) | set(shown["sampling"])
    assert keys - {"config", "source"} <= documented("models", "list")
    assert keys | set(text) <= documented("models", "show")
    made = value_of("models", "show", folder)
    assert made["path"] == str(folder)
    assert made["total_parameters"] > made["active_parameters"] > 0
    assert set(made) <= documented("models", "show")
    drift = {field.name for field in fields(Drift)}
    assert {"quality", "mean_relative_error", *drift} <= documented("models", "show")


def test_a_checkpoint_is_checked_as_json(folder: Path, tmp_path: Path) -> None:
    found = value_of("models", "check", folder)
    assert found["ok"] is True
    assert found["num_tensors"] > 0
    assert set(found) <= documented("models", "check")
    write_checkpoint(tmp_path, "m2")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    broken = value_of("models", "check", tmp_path, code=1)
    assert broken["ok"] is False
    assert "truncated" in broken["problems"][0]


def test_sessions_are_listed_shown_and_checked_as_json(store: Path, folder: Path) -> None:
    (row,) = value_of("sessions", "list", "--store", store)
    assert (row["name"], row["turns"], row["last_question"]) == ("a", 1, "Hello")
    assert set(row) <= documented("sessions", "list")
    shown = value_of("sessions", "show", "a", "--store", store)
    (turn,) = shown["turns"]
    assert [message["role"] for message in turn["messages"]] == ["user", "assistant"]
    assert turn["answer_tokens"] == 4
    assert shown["tokens"] == turn["tokens"] == row["tokens"]
    assert set(shown) | set(turn) <= documented("sessions", "show")
    checked = value_of("sessions", "check", "--store", store)
    assert checked == {"ok": True, "problems": [], "repaired": []}
    assert set(checked) <= documented("sessions", "check")


def test_a_session_that_cannot_be_read_is_named_in_json(tmp_path: Path) -> None:
    SessionStore(tmp_path).create("good", model="m", fingerprint="f")
    (tmp_path / "sessions/bad.json").write_text("{")
    rows = {row["name"]: row for row in value_of("sessions", "list", "--store", tmp_path)}
    assert set(rows) == {"good", "bad"}
    assert "bad.json" in rows["bad"]["problem"]
    checked = value_of("sessions", "check", "--store", tmp_path, code=1)
    assert checked["problems"][0]["path"].endswith("bad.json")
    mended = value_of("sessions", "check", "--repair", "--store", tmp_path)
    assert mended["ok"] is True
    assert mended["repaired"]


def test_a_plan_is_json_with_the_answer_first() -> None:
    plan = value_of("plan", "minimax-m2", "--ram", "160GiB")
    assert plan["fits"] is True
    by_precision = {way["precision"]: way for way in plan["ways"]}
    assert by_precision["int4"]["fits"]
    assert not by_precision["fp8"]["fits"]
    assert by_precision["int4"]["commands"][1] == "fulmen chat --model minimax-m2-int4"
    drawn = value_of("plan", "minimax-m1-80k", "--gpus", "8xH800")
    names = documented("plan")
    for value in (plan, drawn):
        assert set(value) <= names
        parts = [value["rl"], value["flops"], *value["ways"], *value["forecasts"]]
        assert set().union(*parts) <= names
    assert set(drawn["flops_as_drawn"]) <= names


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("minimax-m2", "--rl-gpus", "8xH100"), "--rl-gpus has no effect without --verbose or"),
        (("minimax-m2", "--verbose", "--json"), "--verbose has no effect with --json"),
        (("minimax-m2", "--gpus", "H100", "--memory", "40GB/s"), "--memory is about a machine"),
        (("figure1", "--ram", "4GiB"), "it has no option but --out"),
        (("figure1", "--json"), "it has no option but --out"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(flags: tuple[str, ...], sentence: str) -> None:
    run = called("plan", *flags)
    assert run.returncode == 2
    assert "\nError: --" in run.stderr
    assert sentence in run.stderr


@pytest.mark.parametrize("columns", ["", "0", "1", "50", "80", "500"])
def test_a_plan_stays_within_the_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    most = {"": 80, "0": 80, "1": 30, "500": 100}.get(columns, int(columns or 0))
    run = called("plan", "smollm2", "--verbose")
    for line in (run.stdout + run.stderr).splitlines():
        assert len(line) <= most or " " not in line.strip(), line


def test_a_plan_without_hardware_is_for_this_machine() -> None:
    run = called("plan", "smollm2")
    assert run.stdout.startswith("Yes: SmolLM2")
    told = " ".join(run.stderr.split())
    assert re.match(r"this machine has \d+GiB of memory and ", told)
    measured = re.search(
        r"its memory reads ([\d.]+GB/s), measured just now; for another mach", told
    )
    assert measured is not None
    about = " ".join(run.stdout.split())
    assert f"the memory's read speed, {measured[1]} (measured here)." in about
    named = called("plan", "smollm2", "--memory", "123GB/s")
    assert "measured" not in named.stdout + named.stderr
    assert "read speed, 123GB/s (--memory)." in " ".join(named.stdout.split())
    other = " ".join(called("plan", "smollm2", "--ram", "8GiB").stdout.split())
    assert "read speed, 40GB/s (assumed; --memory names another)." in other
    assert "FLOPs" not in run.stdout
    assert "F(N) = " in called("plan", "smollm2", "--verbose").stdout


def test_gpus_are_planned_for_where_an_engine_serves_the_model_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nfor i in 1 2 3 4; do echo 'NVIDIA H200, 143771'; done\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    served = called("plan", "minimax-m2")
    assert served.stdout.startswith("Yes: MiniMax-M2 runs on 4xH200 with SGLang or vLLM, in FP8")
    assert "plans for its memory alone" in " ".join(served.stderr.split())
    not_served = called("plan", "smollm2")
    assert not_served.stdout.startswith("Yes: SmolLM2-135M-Instruct fits in ")
    told = " ".join(not_served.stderr.split())
    assert "and 4 GPUs (NVIDIA H200); --gpus 4xH200 tells why no engine serves smollm2" in told
    assert called("plan", "minimax-m2", "--memory", "50GB/s").stdout.startswith(
        ("No: MiniMax-M2 does not fit in ", "Yes: MiniMax-M2 fits in ")
    )


def test_figure1_is_a_command_and_its_old_spelling_works() -> None:
    figure = called("figure1").stdout
    assert figure
    assert called("plan", "figure1").stdout == figure
