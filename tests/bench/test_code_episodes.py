"""The benchmark of episodes of code: it checks scores, and tells a rate."""

import json
import os
from collections.abc import Iterator

import pytest

from tests.bench.test_scripts import script
from tests.sandbox.helpers import skip_without_sandbox


@pytest.fixture
def core() -> Iterator[int]:
    """A core of this process, whose cores are given back to it in the end."""
    cores = os.sched_getaffinity(0)
    yield min(cores)
    os.sched_setaffinity(0, cores)


def test_it_tells_how_many_episodes_an_hour_has(
    core: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_without_sandbox()
    episodes = script("code_episodes", monkeypatch)
    episodes.main(episodes=4, core=core, slow_every=0, seed=1)
    told = json.loads(capsys.readouterr().out)
    assert told["benchmark"] == "code_episodes"
    assert told["episodes"] == 4
    assert set(told["median_seconds"]) == set(episodes.WAYS)
    assert 0 < told["an_hour"] <= told["an_hour_of_cpu"] * 1.1


def test_a_wrong_score_ends_it(core: int, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_sandbox()
    episodes = script("code_episodes", monkeypatch)
    monkeypatch.setattr(episodes, "answer_of", lambda task, way: "I do not know.")
    with pytest.raises(ValueError, match="task 0 scores 0 for an answer that is reference"):
        episodes.main(episodes=4, core=core, slow_every=0, seed=1)
