"""Summary of a study: estimates with intervals, as values for JSON and as tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from fulmen.evaluate.curve import Run, Study
from fulmen.evaluate.statistics import (
    Estimate,
    difference,
    estimate,
    expected_best,
    expected_majority,
)

Rows = Sequence[Mapping[str, Any]]


def summarize(study: Study) -> dict[str, Any]:
    """Return all numbers of a study with at least one finished task; estimates as mean, low, high.

    The numbers of a budget:

        thinking_tokens   tokens of thought of a run, on average
        tokens            tokens of a run with its answer, on average
        drawn_tokens      tokens that all runs of the kind sampled; of a fork's thought only those
                          after the budget before
        gain              accuracy beyond that at the smallest budget, task by task
        votes             as many votes as take no more tokens than a run at this budget, and at
                          least one from the votes' own budget on; for each budget of a vote

    Beside them `votes` has growing numbers of votes, for each budget of a vote.
    """
    if not study.tasks:
        raise ValueError("no task is done, there is nothing to report")
    rows = [_row(study, place) for place in range(len(study.config.budgets))]
    summary: dict[str, Any] = {
        "about": study.about,
        "num_tasks": len(study.tasks),
        "budgets": rows,
        "votes": [
            _votes(study, budget, number)
            for budget, most in study.config.resolved_votes().items()
            for number in _doublings(most)
        ],
        "drawn_tokens": {
            kind: sum(row[kind]["drawn_tokens"] for row in rows)
            for kind in _KINDS
            if kind in rows[0]
        },
        "engine": study.engine,
    }
    if study.config.is_checked and study.has_forks:
        pairs = [_pair(study, budget) for budget in study.config.budgets]
        fork, separate = (
            [_mean(scores) for scores in zip(*some, strict=True)]
            for some in zip(*pairs, strict=True)
        )
        num_runs = study.config.num_thoughts
        summary["difference"] = difference(fork, separate, num_runs=num_runs)._asdict()
    return summary


def _row(study: Study, place: int) -> dict[str, Any]:
    """Return the numbers of one budget."""
    config = study.config
    budget, num_runs = config.budgets[place], config.num_thoughts
    row: dict[str, Any] = {"budget": budget}
    if study.has_forks:
        row["fork"] = _forks(study, place)
    if config.is_checked:
        runs = [task.separate[budget][:num_runs] for task in study.tasks.values()]
        row["separate"] = _kind(runs, sum(_num_tokens(run) for some in runs for run in some))
    if config.is_checked and study.has_forks:
        fork, separate = _pair(study, budget)
        row["difference"] = difference(fork, separate, num_runs=num_runs)._asdict()
    scores = [_main_scores(study, budget) for budget in (budget, config.budgets[0])]
    row["gain"] = difference(*scores, num_runs=num_runs)._asdict()
    row["votes"] = [
        _votes(study, vote_budget, number)
        for vote_budget, most in config.resolved_votes().items()
        if (number := _num_paid(study, vote_budget, most, budget, _main(row)["tokens"]))
    ]
    return row


def _main(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the numbers of the runs that a budget is about: the forked ones, if there are any."""
    found: Mapping[str, Any] = row["fork" if "fork" in row else "separate"]
    return found


def _forks(study: Study, place: int) -> dict[str, Any]:
    """Return the numbers of the forked runs at one budget."""
    config = study.config
    budget, num_runs = config.budgets[place], config.num_thoughts
    runs = [task.fork[budget] for task in study.tasks.values()]
    before = [
        task.fork[config.budgets[place - 1]] if place else [None] * num_runs
        for task in study.tasks.values()
    ]
    drawn = sum(
        _num_drawn(run, last)
        for some, lasts in zip(runs, before, strict=True)
        for run, last in zip(some, lasts, strict=True)
    )
    return _kind(runs, drawn)


def _kind(runs: Sequence[Sequence[Run]], drawn: int) -> dict[str, Any]:
    each = [run for some in runs for run in some]
    scores = [_mean([run.score for run in some]) for some in runs]
    return {
        "accuracy": estimate(scores, num_runs=len(runs[0]))._asdict(),
        "thinking_tokens": _mean([run.num_thinking_tokens for run in each]),
        "tokens": _mean([_num_tokens(run) for run in each]),
        "cut": _mean([run.is_cut for run in each]),
        "drawn_tokens": drawn,
    }


def _pools(study: Study, vote_budget: int) -> list[list[Run]]:
    """Return the runs of each task that may vote."""
    most = study.config.resolved_votes()[vote_budget]
    return [task.separate[vote_budget][:most] for task in study.tasks.values()]


def _num_paid(study: Study, vote_budget: int, most: int, budget: int, tokens: float) -> int:
    """Return how many votes the tokens of a run at a budget pay for."""
    if not most:
        return 0
    each = _mean([_num_tokens(run) for pool in _pools(study, vote_budget) for run in pool])
    return min(most, max(int(tokens / each), int(budget >= vote_budget)))


def _doublings(most: int) -> list[int]:
    """Return 1, 2, 4 and so on, and the largest number itself."""
    return sorted({most, *(1 << power for power in range(most.bit_length()))}) if most else []


def _votes(study: Study, vote_budget: int, n: int) -> dict[str, Any]:
    """Return the accuracy of n votes, and their tokens."""
    pools = _pools(study, vote_budget)
    most = len(pools[0])
    each = _mean([_num_tokens(run) for pool in pools for run in pool])

    def over_tasks(value: Callable[[Sequence[Run]], float]) -> dict[str, float]:
        # Only most // n choices of n runs share no run, so that many runs are independent.
        return estimate([value(pool) for pool in pools], num_runs=most // n)._asdict()

    def scores(pool: Sequence[Run]) -> list[float]:
        return [run.score for run in pool]

    logprobs = [run.logprob for pool in pools for run in pool]
    return {
        "budget": vote_budget,
        "num_votes": n,
        "tokens": n * each,
        "majority": over_tasks(
            lambda pool: expected_majority([run.answer for run in pool], scores(pool), n)
        ),
        "likeliest": None
        if None in logprobs
        else over_tasks(
            lambda pool: expected_best([run.logprob or 0.0 for run in pool], scores(pool), n)
        ),
        "any": over_tasks(lambda pool: expected_best(scores(pool), scores(pool), n)),
    }


def _main_scores(study: Study, budget: int) -> list[float]:
    """Return the mean score of each task's runs that a budget is about."""
    num_runs = study.config.num_thoughts
    runs = (task.fork or task.separate for task in study.tasks.values())
    return [_mean([run.score for run in each[budget][:num_runs]]) for each in runs]


def _pair(study: Study, budget: int) -> tuple[list[float], list[float]]:
    """Return the mean scores of the forked and of the separate runs of each task."""
    fork = [_mean([run.score for run in task.fork[budget]]) for task in study.tasks.values()]
    separate = [
        _mean([run.score for run in task.separate[budget][: study.config.num_thoughts]])
        for task in study.tasks.values()
    ]
    return fork, separate


def _num_tokens(run: Run) -> int:
    return run.num_thinking_tokens + run.num_answer_tokens


def _num_drawn(run: Run, last: Run | None) -> int:
    """Return the tokens that a forked run has beyond the run at the budget before."""
    if last is None:
        return _num_tokens(run)
    return _num_tokens(run) - last.num_thinking_tokens if last.is_cut else 0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """Return a summary as tables: the curve, the votes beside it, and their cost."""
    rows = summary["budgets"]
    found = [_curve_table(rows, summary.get("difference"))]
    if summary["votes"]:
        found += [_paid_table(rows), _votes_table(summary["votes"])]
    return [*found, _cost_table(summary)]


def _curve_table(rows: Rows, overall: Mapping[str, float] | None) -> Table:
    accuracy = "accuracy, forked" if "fork" in rows[0] else "accuracy"
    columns = ["thought", "cut", "tokens", accuracy, "95 %", "gain", "95 %"]
    if overall is not None:
        columns += ["separate", "95 %", "difference", "95 %"]
    table = _table("budget", columns)
    for row in rows:
        main = _main(row)
        cells = [f"{main['thinking_tokens']:,.0f}", f"{main['cut']:.0%}", f"{main['tokens']:,.0f}"]
        cells += [*estimate_cells(main["accuracy"]), *estimate_cells(row["gain"], sign="+")]
        if overall is not None:
            cells += [
                *estimate_cells(row["separate"]["accuracy"]),
                *estimate_cells(row["difference"], sign="+"),
            ]
        table.add_row(f"{row['budget']:,}", *cells)
    if overall is not None:
        table.add_row("all", *[""] * 9, *estimate_cells(overall, sign="+"))
    return table


_VOTES = ("votes", "tokens", "majority", "95 %", "likeliest", "95 %", "any")


def _paid_table(rows: Rows) -> Table:
    """Return the votes that the tokens of a run at each budget pay for."""
    table = _table("budget", ["tokens", "budget of a vote", *_VOTES])
    for row in rows:
        for votes in row["votes"]:
            tokens = f"{_main(row)['tokens']:,.0f}"
            table.add_row(f"{row['budget']:,}", tokens, f"{votes['budget']:,}", *_vote_cells(votes))
    return table


def _votes_table(rows: Rows) -> Table:
    """Return growing numbers of votes."""
    table = _table("budget of a vote", _VOTES)
    for votes in rows:
        table.add_row(f"{votes['budget']:,}", *_vote_cells(votes))
    return table


def _vote_cells(votes: Mapping[str, Any]) -> list[str]:
    return [
        str(votes["num_votes"]),
        f"{votes['tokens']:,.0f}",
        *estimate_cells(votes["majority"]),
        *estimate_cells(votes["likeliest"]),
        f"{votes['any']['mean']:.3f}",
    ]


def _cost_table(summary: Mapping[str, Any]) -> Table:
    table = _table("tokens drawn at", ["forked", "separate", "ratio"])
    drawn = {f"{row['budget']:,}": row for row in summary["budgets"]}
    for name, row in drawn.items():
        _add_cost(table, name, *(row.get(kind, {}).get("drawn_tokens") for kind in _KINDS))
    _add_cost(table, "all budgets", *(summary["drawn_tokens"].get(kind) for kind in _KINDS))
    read = [summary["engine"].get(kind) for kind in _KINDS]
    prompts = ["" if each is None else f"{each[_PROMPT]:,}" for each in read]
    shares = ["" if each is None else f"{each[_HIT] / max(each[_PROMPT], 1):.1%}" for each in read]
    table.add_row("given tokens, votes too", *prompts, "")
    table.add_row("of them in the cache", *shares, "")
    return table


_KINDS = ("fork", "separate")
_PROMPT, _HIT = "num_prompt_tokens", "num_hit_tokens"


def _add_cost(table: Table, name: str, fork: int | None, separate: int | None) -> None:
    shown = ["" if each is None else f"{each:,}" for each in (fork, separate)]
    is_pair = fork is not None and separate is not None
    ratio = f"{(fork or 0) / max(separate or 0, 1):.2f}" if is_pair else ""
    table.add_row(name, *shown, ratio)


def estimate_cells(found: Mapping[str, float] | None, sign: str = "") -> list[str]:
    """Return an estimate and its interval as a table shows them; nothing for None."""
    if found is None:
        return ["", ""]
    mean, low, high = (round(value, 3) + 0.0 for value in Estimate(**found))  # + 0.0: never -0.000
    return [f"{mean:{sign}.3f}", f"{low:{sign}.3f} to {high:{sign}.3f}"]


def _table(first: str, columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
