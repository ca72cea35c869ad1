"""The comparison of agents: its script repairs every repository, and both agents follow it."""

import os
import subprocess
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from fulmen.envs import RepairTask, load_environment
from tests.chat.helpers import REAL, real_tokenizer
from tests.sandbox.helpers import skip_without_sandbox
from tests.server.clients.programs import program

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("agent_peers")


@pytest.mark.parametrize("index", range(5))
def test_the_script_repairs_a_repository(index: int, peers: ModuleType, tmp_path: Path) -> None:
    skip_without_sandbox()
    task = load_environment("repairs", seed=7).task(index)
    assert isinstance(task, RepairTask)
    with peers.place(task) as (_, work):
        codes = [
            subprocess.run(
                ["bash", "-c", command],
                cwd=work,
                env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
            ).returncode
            for _, command in peers.commands_of(task)
        ]
        assert codes == [1, 0, 0, 0]
        assert peers.score_of(task, work).value == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini-swe-agent"])
def test_both_agents_follow_the_script(name: str, peers: ModuleType) -> None:
    skip_without_sandbox()
    real_tokenizer()
    rows = peers.side_by_side(program(name), REAL, peers.repairs(3, 2))
    assert set(rows) == {"fulmen agent", name}
    for found in rows.values():
        assert [row["requests"] for row in found] == [5, 5]
        assert all(row["solved"] for row in found)
        # Only the very first request finds nothing in the cache.
        assert found[1]["cached_tokens"] > 0.7 * found[1]["prompt_tokens"]


def test_what_is_asked_for_must_be_clear(peers: ModuleType, tmp_path: Path) -> None:
    for mini, model in ((None, None), (tmp_path, "smollm2")):
        with pytest.raises(ValueError, match="give --mini PROGRAM, or --model NAME"):
            peers.main(mini=mini, model=model)
    with pytest.raises(ValueError, match="--mini needs --tokenizer"):
        peers.main(mini=tmp_path, tasks=1, seed=0)
    with pytest.raises(ValueError, match="cannot be started: "):
        peers.main(mini=tmp_path / "mini", tokenizer=tmp_path, tasks=1, seed=0)
