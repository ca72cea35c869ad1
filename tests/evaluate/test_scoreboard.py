"""Numbers of evaluations: known ones for a known script, and each estimate another way."""

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from fulmen.evaluate import (
    Pass,
    Results,
    as_table,
    compare,
    comparison_sheets,
    eval_sheets,
    summarize_passes,
)
from fulmen.evaluate.statistics import difference, estimate, exact_p
from tests.evaluate.playing import SETTINGS, Buttons, Sums, played, says


def made(
    rates: dict[str, list[str]], path: Path = Path("run"), prompt: str = "p", **fields: Any
) -> Results:
    """Return results of which each task is a word: + passed, - wrong, ! an error, by sample."""
    results = Results(path, SETTINGS, {"model": path.name})
    for name, tasks in rates.items():
        for index, word in enumerate(tasks):
            for sample, letter in enumerate(word):
                one = Pass(
                    environment=name,
                    index=index,
                    sample=sample,
                    prompt=f"{prompt}{index}",
                    seed=0,
                    score={"+": 1.0, "-": 0.25, "!": None}[letter],
                    parts={} if letter == "!" else {"format": 1.0, "right": float(letter == "+")},
                    failure={"+": None, "-": "wrong", "!": "error"}[letter],
                    error="it broke" if letter == "!" else None,
                    answer=None,
                    num_turns=1,
                    num_prompt_tokens=10,
                    num_new_tokens=4 + sample,
                    num_thinking_tokens=2,
                    seconds=0.5,
                )
                results._passes[one.key] = one
    return results


def test_a_script_of_known_rights_and_wrongs_gives_the_known_numbers(tmp_path: Path) -> None:
    results, _ = played(tmp_path, {"sums": Sums()}, num_tasks=12)
    summary = summarize_passes(results)
    (found,) = summary["environments"].values()
    assert (found["tasks"], found["passes"], found["errors"]) == (11, 11, 1)
    assert found["failures"] == {
        **{"wrong": 2, "no answer": 2, "limit": 2},
        **{"loop": 1, "error": 1},
    }
    assert found["pass_at"]["1"]["mean"] == pytest.approx(4 / 11)  # an error is no score
    rights = [1.0] * 4 + [0.0] * 7
    assert found["pass_at"] == {"1": estimate(rights)._asdict()}
    assert found["score"]["mean"] == pytest.approx(4 / 11)
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    "tasks",
    [["++++", "+---", "----", "++--"], ["+-+--", "-----"], ["++!-", "-+!!", "!!!!", "+"]],
)
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(tasks: list[str]) -> None:
    found = summarize_passes(made({"e": tasks}))["environments"]["e"]["pass_at"]
    scored = [one.replace("!", "") for one in tasks]
    most = max(map(len, scored))
    assert set(found) == {str(k) for k in {1, 2, 4, most} if k <= most}
    for k, got in found.items():
        shares = []
        for task in scored:
            choices = list(itertools.combinations(task, int(k)))
            if choices:
                shares.append(sum("+" in one for one in choices) / len(choices))
        assert got["mean"] == pytest.approx(sum(shares) / len(shares))
        assert 0 <= got["low"] <= got["mean"] <= got["high"] <= 1


def test_samples_of_one_prompt_do_not_count_as_many_tasks() -> None:
    alike = made({"e": ["++++++++", "--------"] * 10})
    mixed = made({"e": ["+-+-+-+-", "-+-+-+-+"] * 10})
    once = made({"e": ["+", "-"] * 10})
    widths = []
    for results in (alike, mixed, once):
        found = summarize_passes(results)["environments"]["e"]["pass_at"]["1"]
        assert found["mean"] == 0.5
        widths.append(found["high"] - found["low"])
    assert widths[0] == pytest.approx(widths[2])
    assert widths[1] < 0.6 * widths[0]


def test_errors_are_in_no_mean() -> None:
    clean = summarize_passes(made({"e": ["+-", "--"]}))["environments"]["e"]
    broken = summarize_passes(made({"e": ["+-!", "--!", "!!!"]}))["environments"]["e"]
    assert broken.pop("errors") == 5
    assert clean.pop("errors") == 0
    assert broken.pop("failures") == {**clean.pop("failures"), "error": 5}
    assert broken == clean
    nothing = summarize_passes(made({"e": ["!"]}))
    assert nothing["environments"]["e"]["pass_at"] == {"1": None}
    json.dumps(nothing, allow_nan=False)
    assert "error" in shown(*eval_sheets(nothing))


def test_tasks_whose_samples_differ_are_told() -> None:
    found = summarize_passes(made({"e": ["+-", "--", "++", "-+"], "f": ["+", "-"]}))["environments"]
    assert found["e"]["mixed"] == 0.5
    assert found["f"]["mixed"] is None


def shown(*sheets: Any) -> str:
    """Return sheets as text, each row a line."""
    from rich.console import Console

    console = Console(width=300, no_color=True)
    with console.capture() as capture:
        for sheet in sheets:
            console.print(as_table(sheet))
    return capture.get()


def test_baselines_stand_beside_an_evaluation() -> None:
    now = summarize_passes(made({"e": ["++", "+-"], "[red]f": ["-"]}, Path("runs/now")))
    before = summarize_passes(made({"e": ["--", "+-"], "g": ["-"]}, Path("runs/before")))
    text = shown(*eval_sheets(now, [before]))
    lines = [line.split() for line in text.splitlines()]
    assert ["e", "now", "2", "2", "0.750"] in [line[:5] for line in lines]
    assert ["before", "2", "2", "0.250"] in [line[:4] for line in lines]
    assert ["[red]f", "now", "1", "1", "0.000"] in [line[:5] for line in lines]
    assert "g" not in [line[0] for line in lines if line]
    assert "pass@2" in text
    assert "run" not in shown(*eval_sheets(now)).split()


def test_p_is_that_of_all_ways_in_which_the_changed_tasks_could_have_changed() -> None:
    for better, worse in itertools.product(range(5), repeat=2):
        total, uneven = better + worse, abs(better - worse)
        ways = list(itertools.product((1, -1), repeat=total))
        as_uneven = sum(abs(sum(way)) >= uneven for way in ways)
        assert exact_p(better, worse) == pytest.approx(float(Fraction(as_uneven, len(ways))))
    assert exact_p(0, 0) == 1.0
    assert 0 < exact_p(1000, 4000) < 1e-300 or exact_p(1000, 4000) == 0.0
    assert exact_p(5000, 5000) == 1.0


def test_two_evaluations_are_compared_task_by_task() -> None:
    first = made({"e": ["+", "-", "-", "-", "+", "!"], "only": ["+"]}, Path("a"))
    second = made({"e": ["+", "+", "+", "+", "-", "+", "+"]}, Path("b"))
    compared = compare(first, second)
    assert list(compared["environments"]) == ["e"]
    found = compared["environments"]["e"]
    assert (found["tasks"], found["better"], found["worse"]) == (5, 3, 1)
    assert found["p"] == pytest.approx(2 * (1 + 4) / 2**4)
    assert (found["first"], found["second"]) == (0.4, 0.8)
    a, b = [1.0, 0, 0, 0, 1], [1.0, 1, 1, 1, 0]
    assert found["difference"] == difference(b, a)._asdict()
    assert found["changed"] == [
        *({"task": index, "first": 0.0, "second": 1.0} for index in (1, 2, 3)),
        {"task": 4, "first": 1.0, "second": 0.0},
    ]
    same = {key: value for key, value in found.items() if key != "changed"}
    assert compared["all"] == same
    text = shown(*comparison_sheets(compared))
    assert "+0.400" in text
    back = compare(second, first)["environments"]["e"]
    assert back["p"] == found["p"]
    assert back["difference"]["mean"] == -found["difference"]["mean"]
    assert math.isclose(back["difference"]["low"], -found["difference"]["high"])


def test_many_changed_tasks_are_cut_in_the_table_and_whole_in_the_values() -> None:
    compared = compare(made({"e": ["-"] * 50}), made({"e": ["+"] * 50}))
    assert len(compared["environments"]["e"]["changed"]) == 50
    assert "30 more" in shown(*comparison_sheets(compared))


def test_evaluations_of_other_tasks_are_not_compared() -> None:
    with pytest.raises(ValueError, match="a and b have no task in common: there is e and nothing"):
        compare(made({"e": ["+"]}, Path("a")), made({"e": ["!"]}, Path("b")))
    with pytest.raises(ValueError, match="task 0 of e is another one in b than in a"):
        compare(made({"e": ["+"]}, Path("a")), made({"e": ["+"]}, Path("b"), prompt="q"))


def test_parts_of_the_score_are_told_apart(tmp_path: Path) -> None:
    results, _ = played(tmp_path, {"buttons": Buttons()}, lambda _: says("done"))
    summary = summarize_passes(results)
    assert summary["environments"]["buttons"]["parts"] == {"pressed": 0.0}
    assert "pressed" in shown(*eval_sheets(summary))
