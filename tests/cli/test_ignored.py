"""A field of a config.json that is ignored by name, in every command that loads a model."""

import json
from pathlib import Path

from tests.cli.test_cli import called
from tests.tiny import write_checkpoint

FLAGS = ("--ignore-config-field", "strange", "--ignore-config-field", "odd")


def test_an_unknown_field_is_ignored_where_it_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m2", "m2")
    file = folder / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"strange": 1, "odd": [2]}))
    limits = ("--max-tokens", "3")
    study = ("--tasks", "1", "--budgets", "0,4", "--thoughts", "1", "--votes", "0")
    for command in (
        ("chat", "hi", "-m", folder, *limits, "--session", "s", "--store", tmp_path / "store"),
        ("generate", "hi", "-m", folder, *limits),
        ("models", "check", folder),
        ("plan", folder, "--ram", "4GiB"),
        ("models", "show", folder),
        ("quantize", folder, tmp_path / "out", "--report-tokens", "10"),
        ("scale", "-m", folder, *study, "--answer-tokens", "2"),
        ("bench", "-m", folder, "--prompt", "8", "--tokens", "2", "--rounds", "1"),
    ):
        refused = called(*command)
        assert refused.returncode == 1
        assert "unknown field strange = 1 in" in refused.stderr
        assert "--ignore-config-field strange" in refused.stderr
        loaded = called(*command, *FLAGS)
        assert loaded.returncode == 0, loaded.stderr
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert not {"strange", "odd"} & written.keys()
    assert called("models", "check", tmp_path / "out").returncode == 0
    needed = called("models", "check", folder, *FLAGS, "--ignore-config-field", "hidden_size")
    assert needed.returncode == 1
    assert "hidden_size cannot be ignored, the model needs it" in needed.stderr


def test_without_a_model_there_is_no_config() -> None:
    refused = called("bench", *FLAGS)
    assert refused.returncode == 2
    assert "Error: --ignore-config-field is for a model, --model names one\n" in refused.stderr
