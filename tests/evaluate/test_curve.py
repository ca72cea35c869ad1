"""The whole study: forks against separate runs, stopped and gone on with, refused where it must."""

import asyncio
import json
import re
from dataclasses import replace
from itertools import pairwise
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
    assert rows[0]["votes"] == []
    assert rows[1]["votes"][0]["num_votes"] == 1
    assert rows[-1]["votes"][0]["num_votes"] > 1
    for row in rows[2:]:
        (votes,) = row["votes"]
        assert votes["tokens"] <= row["fork"]["tokens"]
        assert votes["any"]["mean"] >= max(votes["majority"]["mean"], votes["likeliest"]["mean"])


def test_each_budget_of_a_vote_has_numbers_of_votes_that_double(m2: LLM) -> None:
    config = replace(CONFIG, vote_budgets=(2, 30), is_checked=False)
    study = Study(config, ABOUT, None)
    study.run(m2, LuckyTasks(), num_tasks=8, params=PARAMS)
    summary = summarize(study)
    found = [(votes["budget"], votes["num_votes"]) for votes in summary["votes"]]
    assert found == [(budget, n) for budget in (2, 30) for n in (1, 2, 4, 6)]
    for alone in summary["votes"][::4]:
        runs = [run for task in study.tasks.values() for run in task.separate[alone["budget"]]]
        mean = sum(run.score for run in runs) / len(runs)
        assert alone["likeliest"]["mean"] == pytest.approx(mean)
        assert alone["any"]["mean"] == pytest.approx(mean)
        voted = sum(run.score for run in runs if run.answer is not None)  # silence does not vote
        assert alone["majority"]["mean"] == pytest.approx(voted / len(runs))
    for less, more in pairwise(summary["votes"][:4]):
        assert less["tokens"] < more["tokens"]
        assert less["any"]["mean"] <= more["any"]["mean"] + 1e-9
    assert [votes["budget"] for votes in summary["budgets"][-1]["votes"]] == [2, 30]
    first = study_of(m2, 8)  # other votes change no thought and no vote
    assert {i: task.fork for i, task in first.tasks.items()} == {
        i: task.fork for i, task in study.tasks.items()
    }
    assert first.tasks[3].separate[2] == study.tasks[3].separate[2]


def test_a_gain_is_what_a_budget_has_beyond_the_smallest(m2: LLM) -> None:
    rows = summarize(study_of(m2, 12))["budgets"]
    accuracies = [row["fork"]["accuracy"]["mean"] for row in rows]
    assert [row["gain"]["mean"] for row in rows] == pytest.approx(
        [accuracy - accuracies[0] for accuracy in accuracies]
    )
    assert rows[0]["gain"]["low"] <= 0 <= rows[0]["gain"]["high"]


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
        ({"vote_budgets": (5,)}, "vote_budgets are '5', they must be some of the budgets"),
        ({"vote_budgets": (8, 2)}, "vote_budgets are '8,2', they must be some of the budgets"),
        ({"vote_budgets": ()}, "vote_budgets are '', they must be some of the budgets"),
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


def test_a_plot_of_several_studies_has_a_panel_for_each_and_one_legend(m2: LLM) -> None:
    study = Study(replace(CONFIG, vote_budgets=(2, 8)), ABOUT, None)
    study.run(m2, LuckyTasks(), num_tasks=4, params=PARAMS)
    summary = summarize(study)
    others = [{**summary, "about": {**summary["about"], "task": name}} for name in ("skill", "wit")]
    root = ElementTree.fromstring(plot_svg(summary, *others))
    name = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{name}text")]
    for panel in ("luck", "skill", "wit"):
        assert texts.count(panel) == 1
    assert texts.count("majority vote, 2 each") == texts.count("majority vote, 8 each") == 1
    assert texts.count("one thought") == 1
    kinds = [path.get("class") for path in root.iter(f"{name}path")]
    assert kinds.count("fork curve") == 4  # three panels and the legend
    assert kinds.count("majority curve") == 8
    width, height = (float(root.get(side) or 0) for side in ("width", "height"))
    for circle in root.iter(f"{name}circle"):
        assert 0 < float(circle.get("cx") or 0) < width
        assert 0 < float(circle.get("cy") or 0) < height
