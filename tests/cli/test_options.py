"""Flags made from a dataclass: one for each field, read as the field is typed."""

import dataclasses
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fulmen.cli.options import ENGINE_CONFIG, with_flags_of
from fulmen.engine import EngineConfig
from fulmen.sampling import SamplingParams


def run_command(
    *arguments: str, only: tuple[str, ...] | None = None, without: tuple[str, ...] = ()
) -> tuple[dict[str, Any], str]:
    """Run a command with flags of both configs; return what it was given, or its output."""
    seen: dict[str, Any] = {}
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @with_flags_of(SamplingParams, only=only)
    @with_flags_of(ENGINE_CONFIG, into="engine", without=without, shows_defaults=True)
    def command(*, given: dict[str, Any], engine: dict[str, Any]) -> None:
        seen.update(given | engine)

    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    return seen, " ".join(result.output.split())


def test_every_field_of_the_engines_config_has_a_flag_with_its_default() -> None:
    _, text = run_command("--help")
    for flag in (
        *("--max-num-seqs", "--max-num-batched-tokens", "--max-model-len", "--kv-cache"),
        *("--kv-cache-dtype", "--draft-tokens", "--snapshot-bytes"),
    ):
        assert f"{flag} " in text
    assert len(dataclasses.fields(EngineConfig)) == 8
    assert "Default: 2GiB." in text
    assert "Default: 1GiB." in text
    assert "--no-" not in text


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (("--kv-cache", "3GiB"), {"kv_cache_bytes": 3 * 2**30}),
        (("--snapshot-bytes", "1MB"), {"snapshot_bytes": 10**6}),
        (("--max-model-len", "40k"), {"max_model_len": 40_000}),
        (("--max-model-len", "none"), {"max_model_len": None}),
        (("--kv-cache-dtype", "int8"), {"kv_cache_dtype": "int8"}),
        (
            ("--draft-tokens", "4", "--max-num-seqs", "2"),
            {"num_draft_tokens": 4, "max_num_seqs": 2},
        ),
        (("--top-k", "none", "--seed", "-3"), {"top_k": None, "seed": -3}),
        (("--stop", "a", "--stop", "none"), {"stop": ("a", "none")}),
        (("--stop-token-ids", "5", "--ignore-eos"), {"stop_token_ids": (5,), "ignore_eos": True}),
        (("--thinking-budget", "1.5M"), {"thinking_budget": 1_500_000}),
        ((), {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_flag_is_read_as_its_field_is_typed(
    arguments: tuple[str, ...], given: dict[str, Any]
) -> None:
    found, text = run_command(*arguments)
    assert found == given, text


def test_flags_of_the_engine_make_its_config() -> None:
    found, _ = run_command("--kv-cache", "1MiB", "--max-num-seqs", "3", only=("seed",))
    assert EngineConfig(**found) == EngineConfig(kv_cache_bytes=2**20, max_num_seqs=3)


def test_fields_without_a_flag_are_unknown() -> None:
    _, text = run_command("--help", only=("seed",), without=("kv_cache_dtype",))
    assert "--top-k" not in text
    assert "--kv-cache-dtype" not in text


def test_a_wrong_value_is_refused_before_the_command_runs() -> None:
    app = typer.Typer()

    @app.command()
    @with_flags_of(SamplingParams)
    def command(*, given: dict[str, Any]) -> None:
        raise AssertionError("the command ran")

    result = CliRunner().invoke(app, ["--top-p", "7"])
    assert result.exit_code == 2
    assert "--top-p is 7.0, it must be above 0 and at most 1" in result.output
