"""The whole study: forks against separate runs, stopped and gone on with, refused where it must."""

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fulmen.engine import EngineConfig
from fulmen.envs import Repairs
from fulmen.evaluate import Study, StudyConfig, plot_svg, summarize
from fulmen.llm import LLM
from tests.evaluate.helpers import PARAMS, LuckyTasks, load, plain

CONFIG = StudyConfig(
    budgets=(0, 2, 8, 30), num_thoughts=2, answer_tokens=3, num_votes=6, is_checked=True
)
ABOUT = {"model": "tiny", "task": "luck"}


@pytest.fixture(scope="module", params=["m1", "m2"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def m2(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(tmp_path_factory.mktemp("m2-only"), "m2")


def study_of(llm: LLM, num_tasks: int, path: Path | None = None, **options: Any) -> Study:
    study = Study(CONFIG, ABOUT, path)
    study.run(llm, LuckyTasks(), num_tasks=num_tasks, params=PARAMS, **options)
    return study


def test_forks_and_separate_runs_agree_within_the_interval_and_forks_cost_less(llm: LLM) -> None:
    # Each interval misses 0 once in twenty times, by chance; with this seed none does.
    study = Study(replace(CONFIG, seed=1), ABOUT, None)
    study.run(llm, LuckyTasks(), num_tasks=60, params=PARAMS)
    summary = summarize(study)
    accuracies = [row["fork"]["accuracy"]["mean"] for row in summary["budgets"]]
    assert accuracies[0] + 0.15 < accuracies[-1] < 1  # it does depend on the budget
    for row in summary["budgets"]:
        assert row["difference"]["low"] <= 0 <= row["difference"]["high"]
        for kind in ("fork", "separate"):
            found = row[kind]["accuracy"]
            assert 0 <= found["low"] < found["mean"] < found["high"] <= 1
    assert summary["difference"]["low"] <= 0 <= summary["difference"]["high"]
    drawn = summary["drawn_tokens"]
    assert drawn["fork"] < 0.9 * drawn["separate"]
    assert drawn["fork"] == summary["engine"]["fork"]["num_new_tokens"]


def test_the_tokens_of_both_kinds_are_those_that_the_engine_drew(m2: LLM) -> None:
    config = replace(CONFIG, num_votes=0)
    study = Study(config, ABOUT, None)
    study.run(m2, LuckyTasks(), num_tasks=5, params=PARAMS)
    summary = summarize(study)
    for kind, drawn in summary["drawn_tokens"].items():
        assert drawn == summary["engine"][kind]["num_new_tokens"]
        assert drawn == sum(row[kind]["drawn_tokens"] for row in summary["budgets"])


def test_votes_take_no_more_tokens_than_a_run_at_the_budget(m2: LLM) -> None:
    rows = summarize(study_of(m2, 12))["budgets"]
    assert rows[0]["votes"] is None
    assert rows[1]["votes"]["num_votes"] == 1
    assert rows[-1]["votes"]["num_votes"] > 1
    for row in rows[2:]:
        votes = row["votes"]
        assert votes["tokens"] <= row["fork"]["tokens"]
        assert votes["any"]["mean"] >= max(votes["majority"]["mean"], votes["likeliest"]["mean"])


def test_runs_do_not_depend_on_what_runs_beside_them(m2: LLM) -> None:
    alone = LLM(
        m2.engine.model, m2.tokenizer, m2.format, engine_config=EngineConfig(max_num_seqs=1)
    )
    assert study_of(m2, 6).tasks == study_of(alone, 6).tasks


def test_a_study_that_was_stopped_goes_on_to_the_same_end(m2: LLM, tmp_path: Path) -> None:
    whole = study_of(m2, 20, tmp_path / "whole.json")
    stopped = tmp_path / "stopped.json"

    def stop(done: int, total: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study_of(m2, 20, stopped, on_progress=stop)
    assert not m2.engine.has_unfinished
    assert 8 <= len(json.loads(stopped.read_text())["tasks"]) < 20
    resumed = study_of(m2, 20, stopped)
    assert resumed.tasks == whole.tasks
    kept, known = (json.loads(file.read_text()) for file in (stopped, tmp_path / "whole.json"))
    assert (kept["about"], kept["tasks"]) == (known["about"], known["tasks"])
    before = m2.engine.stats.num_steps
    assert summarize(study_of(m2, 20, stopped))["budgets"] == summarize(whole)["budgets"]
    assert m2.engine.stats.num_steps == before  # nothing was left to do


def test_a_file_of_another_study_is_refused(m2: LLM, tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    study_of(m2, 2, file)
    for about, config, sentence in (
        (ABOUT | {"task": "skill"}, CONFIG, 'has runs with task "luck", not "skill"'),
        (ABOUT, replace(CONFIG, seed=1), "has runs with seed 0, not 1; another file is needed"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Study(config, about, file)
    led = replace(CONFIG, closing="So:")
    file = tmp_path / "led.json"
    written = Study(led, ABOUT, file)
    written.run(plain(m2), LuckyTasks(), num_tasks=2, params=PARAMS)
    other = plain(m2, "Please: {{ messages[0].content }}")
    with pytest.raises(ValueError, match="has other runs: its task 0 was another one"):
        Study(led, ABOUT, file).run(other, LuckyTasks(), num_tasks=2, params=PARAMS)
    for text in ("{}", "no", "[]", '{"about": {}, "engine": {}, "tasks": {"0": 1}}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="does not hold runs that fulmen scale made"):
            Study(CONFIG, ABOUT, file)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"budgets": ()}, "budgets are '', they must be 0 or more and ascending"),
        ({"budgets": (4, 4)}, "budgets are '4,4'"),
        ({"vote_budget": 5}, "vote_budget is 5, it must be one of the budgets"),
        ({"num_thoughts": 0}, "num_thoughts is 0, it must be 1 or more"),
        ({"answer_tokens": 0}, "answer_tokens is 0, it must be 1 or more"),
        ({"num_votes": -1}, "num_votes is -1, it must be 0 or more"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        replace(CONFIG, **wrong)


def test_without_chance_there_is_nothing_to_average(m2: LLM) -> None:
    study = Study(CONFIG, ABOUT, None)
    with pytest.raises(ValueError, match="at temperature 0 all runs of a task are equal"):
        study.run(m2, LuckyTasks(), num_tasks=2, params=replace(PARAMS, temperature=0))


def test_tasks_that_take_tools_are_no_questions(m2: LLM) -> None:
    study = Study(CONFIG, ABOUT, None)
    with pytest.raises(ValueError, match="a curve needs questions that are answered at once"):
        study.run(m2, Repairs(0), num_tasks=1, params=PARAMS)


def test_a_study_runs_where_an_event_loop_runs_already(m2: LLM) -> None:
    async def work() -> Study:
        return study_of(m2, 1)

    assert asyncio.run(work()).tasks == study_of(m2, 1).tasks


def test_a_study_without_runs_has_no_report() -> None:
    with pytest.raises(ValueError, match="no task is done"):
        summarize(Study(CONFIG, ABOUT, None))


def test_the_plot_has_a_line_for_each_kind_and_shows_names_as_text(m2: LLM) -> None:
    study = study_of(m2, 4)
    study.about["task"] = "<luck> & co"
    root = ElementTree.fromstring(plot_svg(summarize(study)))
    name = "{http://www.w3.org/2000/svg}"
    kinds = [path.get("class") for path in root.iter(f"{name}path")]
    for kind in ("fork", "separate", "majority", "likeliest", "any"):
        assert kinds.count(f"{kind} curve") == 2  # the curve and its place in the legend
    texts = [text.text or "" for text in root.iter(f"{name}text")]
    assert any("<luck> & co" in text for text in texts)
    for circle in root.iter(f"{name}circle"):
        assert 86 <= float(circle.get("cy") or 0) <= 400
