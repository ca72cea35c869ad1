"""Numbers of evaluations, and of two compared: values for JSON, and sheets for people.

    Results -> summarize_passes -> values -> sheets -> a terminal's tables, or a page's

Tasks are the sample, so samples of one task are averaged first (statistics.py). Errors are counted
and are in no other number. Two evaluations are compared task by task, over tasks that both played.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from fulmen.evaluate.report import estimate_cells
from fulmen.evaluate.results import FAILURES, Pass, Results
from fulmen.evaluate.statistics import difference, estimate, exact_p, expected_best

_MEANS: Final = {
    "turns": "num_turns",
    "prompt_tokens": "num_prompt_tokens",
    "tokens": "num_new_tokens",
    "thinking_tokens": "num_thinking_tokens",
    "seconds": "seconds",
}
"""Means over passes, and their fields"""
_MOST_CHANGED: Final = 20
"""Changed tasks that a sheet lists for each environment"""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table for people."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_texts: int = 1
    """First columns, which hold texts; the others hold numbers"""


# ---- one evaluation ------------------------------------------------------------------------------


def summarize_passes(results: Results) -> dict[str, Any]:
    """Return all numbers of an evaluation by environment; estimates as mean, low, high.

    tasks, passes, errors  tasks with a score, passes with a score, passes without one
    pass_at                by k: the share of tasks that k samples solve at least once, over the
                           tasks that have as many; None where there are none
    mixed                  the share of tasks whose samples have different scores, which is what
                           reinforcement learning learns from; None for single samples
    score, parts           the mean of scores, and of their named parts
    turns, tokens, ...     means of a pass
    failures               passes by the reason why they did not succeed
    """
    by_name: dict[str, list[Pass]] = defaultdict(list)
    for played in results.passes:
        by_name[played.environment].append(played)
    return {
        "folder": str(results.path),
        "model": results.about.get("model"),
        "settings": dict(results.settings),
        "environments": {name: _environment(passes) for name, passes in by_name.items()},
    }


def _environment(passes: Sequence[Pass]) -> dict[str, Any]:
    """Return the numbers of one environment."""
    scored = [one for one in passes if one.score is not None]
    failures = Counter(one.failure for one in passes if one.failure is not None)
    tasks = list(_by_task(scored).values())
    most = max(map(len, tasks), default=1)
    parts = defaultdict(list)
    for one in scored:
        for name, value in one.parts.items():
            parts[name].append(value)
    return {
        "tasks": len(tasks),
        "passes": len(scored),
        "errors": len(passes) - len(scored),
        "pass_at": {str(k): _pass_at(tasks, k) for k in _powers(most)},
        "mixed": _mixed(tasks),
        "score": _over_tasks(tasks, lambda task: _mean([one.score or 0.0 for one in task])),
        "parts": {name: _mean(parts[name]) for name in sorted(parts)},
        **{
            name: _mean([getattr(one, field) for one in scored]) if scored else None
            for name, field in _MEANS.items()
        },
        "failures": {kind: failures[kind] for kind in FAILURES},
    }


def _by_task(passes: Iterable[Pass]) -> dict[int, list[Pass]]:
    found: dict[int, list[Pass]] = defaultdict(list)
    for one in passes:
        found[one.index].append(one)
    return found


def _powers(most: int) -> list[int]:
    """Return 1, 2, 4 ... and the number itself."""
    return sorted({2**n for n in range(most.bit_length())} | {most})


def _pass_at(tasks: Sequence[Sequence[Pass]], k: int) -> dict[str, float] | None:
    """Estimate the share of tasks that k samples solve, without bias (arXiv:2107.03374)."""

    def share(task: Sequence[Pass]) -> float:
        passed = [float(one.failure is None) for one in task]
        return expected_best(passed, passed, k)

    # Only so many choices of k samples share no sample, so that many are independent.
    return _over_tasks([task for task in tasks if len(task) >= k], share, size=k)


def _over_tasks(
    tasks: Sequence[Sequence[Pass]], value: Callable[[Sequence[Pass]], float], size: int = 1
) -> dict[str, float] | None:
    if not tasks:
        return None
    num_runs = sum(map(len, tasks)) // len(tasks) // size
    return estimate([value(task) for task in tasks], num_runs=max(num_runs, 1))._asdict()


def _mixed(tasks: Sequence[Sequence[Pass]]) -> float | None:
    several = [{one.score for one in task} for task in tasks if len(task) > 1]
    return _mean([float(len(scores) > 1) for scores in several]) if several else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# ---- two evaluations -----------------------------------------------------------------------------


def compare(first: Results, second: Results) -> dict[str, Any]:
    """Return how the second evaluation differs from the first, task by task.

        tasks          tasks that both played
        first, second  their pass rates
        difference     second - first, with its interval over pairs
        better, worse  tasks that passed more often, or less often, in the second
        p              of the exact test of better against worse: McNemar's, where each task was
                       played once
        changed        those tasks with both pass rates

    Raises ValueError if there is no such task, or if one is another task in the second.
    """
    pairs: dict[str, dict[int, tuple[list[Pass], list[Pass]]]] = {}
    a, b = _scored_tasks(first), _scored_tasks(second)
    for name in sorted(a.keys() & b.keys()):
        common = sorted(a[name].keys() & b[name].keys())
        for index in common:
            if a[name][index][0].prompt != b[name][index][0].prompt:
                raise ValueError(
                    f"task {index} of {name} is another one in {second.path} than in {first.path}, "
                    "evaluations are compared over the same tasks, which --seed draws"
                )
        if common:
            pairs[name] = {index: (a[name][index], b[name][index]) for index in common}
    if not pairs:
        names = [", ".join(sorted(one)) or "nothing" for one in (a, b)]
        raise ValueError(
            f"{first.path} and {second.path} have no task in common: there is {names[0]} and "
            f"{names[1]}"
        )
    together = [pair for tasks in pairs.values() for pair in tasks.values()]
    return {
        "first": {"folder": str(first.path), "model": first.about.get("model")},
        "second": {"folder": str(second.path), "model": second.about.get("model")},
        "environments": {
            name: {**_compared(list(tasks.values())), "changed": _changed(tasks)}
            for name, tasks in pairs.items()
        },
        "all": _compared(together),
    }


def _scored_tasks(results: Results) -> dict[str, dict[int, list[Pass]]]:
    by_name: dict[str, list[Pass]] = defaultdict(list)
    for one in results.passes:
        if one.score is not None:
            by_name[one.environment].append(one)
    return {name: _by_task(passes) for name, passes in by_name.items()}


def _compared(pairs: Sequence[tuple[Sequence[Pass], Sequence[Pass]]]) -> dict[str, Any]:
    first, second = ([_rate(task) for task in side] for side in zip(*pairs, strict=True))
    num_runs = min(sum(map(len, side)) // len(pairs) for side in zip(*pairs, strict=True))
    better = sum(b > a for a, b in zip(first, second, strict=True))
    worse = sum(b < a for a, b in zip(first, second, strict=True))
    return {
        "tasks": len(pairs),
        "first": _mean(first),
        "second": _mean(second),
        "difference": difference(second, first, num_runs=num_runs)._asdict(),
        "better": better,
        "worse": worse,
        "p": exact_p(better, worse),
    }


def _changed(tasks: Mapping[int, tuple[Sequence[Pass], Sequence[Pass]]]) -> list[dict[str, Any]]:
    rates = [(index, _rate(first), _rate(second)) for index, (first, second) in tasks.items()]
    return [{"task": index, "first": a, "second": b} for index, a, b in rates if a != b]


def _rate(task: Sequence[Pass]) -> float:
    return sum(one.failure is None for one in task) / len(task)


# ---- sheets --------------------------------------------------------------------------------------


def eval_sheets(
    summary: Mapping[str, Any], baselines: Sequence[Mapping[str, Any]] = ()
) -> list[Sheet]:
    """Return a summary as sheets, with those of earlier evaluations beside it."""
    runs = [summary, *baselines]
    rows: list[list[str]] = []
    failed: list[list[str]] = []
    parts: list[list[str]] = []
    most = max((_largest(found) for found in summary["environments"].values()), default=1)
    for name in summary["environments"]:
        for place, run in enumerate(runs):
            if (found := run["environments"].get(name)) is None:
                continue
            texts = [name if place == 0 else ""] + [_run_name(run)] * bool(baselines)
            rows.append([*texts, *_numbers(found, most)])
            counts = [found["failures"][kind] for kind in FAILURES]
            num_passed = found["passes"] + found["errors"] - sum(counts)
            failed.append([*texts, *(f"{count:,}" for count in (num_passed, *counts))])
            for part, value in found["parts"].items():
                parts.append([*texts, part, f"{value:.3f}"])
                texts = [""] * len(texts)
    first = ["environment", *["run"] * bool(baselines)]
    columns = [*first, "tasks", "samples", "pass@1", "95 %"]
    columns += [f"pass@{most}", "mixed"] if most > 1 else []
    columns += ["score", "tokens", "thinking", "seconds"]
    sheets = [
        Sheet("results", columns, rows, len(first)),
        Sheet("passes", [*first, "passed", *FAILURES], failed, len(first)),
    ]
    if parts:
        named = [*first, "part of the score"]
        sheets.append(Sheet("parts", [*named, "mean"], parts, len(named)))
    return sheets


def _largest(found: Mapping[str, Any]) -> int:
    return max(map(int, found["pass_at"]))


def _numbers(found: Mapping[str, Any], most: int) -> list[str]:
    per_task = found["passes"] / found["tasks"] if found["tasks"] else 0
    cells = [f"{found['tasks']:,}", f"{per_task:.3g}", *estimate_cells(found["pass_at"]["1"])]
    if most > 1:
        at_most = found["pass_at"].get(str(most))
        cells.append("" if at_most is None else f"{at_most['mean']:.3f}")
        cells.append("" if found["mixed"] is None else f"{found['mixed']:.3f}")
    cells.append("" if found["score"] is None else f"{found['score']['mean']:.3f}")
    for name, form in (("tokens", ",.0f"), ("thinking_tokens", ",.0f"), ("seconds", ",.2f")):
        cells.append("" if found[name] is None else format(found[name], form))
    return cells


def _run_name(run: Mapping[str, Any]) -> str:
    return str(run["folder"]).rstrip("/").rpartition("/")[2]


def comparison_sheets(compared: Mapping[str, Any]) -> list[Sheet]:
    """Return a comparison as sheets: the test, and the tasks that changed."""
    named = {**compared["environments"]}
    if len(named) > 1:
        named["all"] = compared["all"]
    rows = [
        [
            name,
            f"{found['tasks']:,}",
            f"{found['first']:.3f}",
            f"{found['second']:.3f}",
            *estimate_cells(found["difference"], sign="+"),
            f"{found['better']:,}",
            f"{found['worse']:,}",
            f"{found['p']:.3g}",
        ]
        for name, found in named.items()
    ]
    columns = ["environment", "tasks", "first", "second", "difference", "95 %"]
    sheets = [Sheet("comparison", [*columns, "better", "worse", "p"], rows)]
    changed = []
    for name, found in compared["environments"].items():
        for one in found["changed"][:_MOST_CHANGED]:
            changed.append([name, str(one["task"]), f"{one['first']:.3g}", f"{one['second']:.3g}"])
            name = ""
        if (rest := len(found["changed"]) - _MOST_CHANGED) > 0:
            changed.append(["", f"{rest:,} more", "", ""])
    if changed:
        sheets.append(Sheet("changed tasks", ["environment", "task", "first", "second"], changed))
    return sheets


def as_table(sheet: Sheet) -> Table:
    """Return a sheet for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(sheet.columns):
        is_text = place < sheet.num_texts
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    for row in sheet.rows:
        table.add_row(*map(escape, row))
    return table
