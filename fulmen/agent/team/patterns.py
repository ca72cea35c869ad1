"""Ways in which agents work together, as functions: of a team that is open, without a lead's model.

fan_out       many read side by side, the first answers that are enough end the rest
review_loop   one works, another one with a fresh mind judges, until it approves
best_of_n     one explores, forks of it try, the best is kept
map_reduce    one part each, then one for all reports
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from fulmen.agent.team.config import LEAD
from fulmen.agent.team.members import Member, Report
from fulmen.agent.team.roles import APPROVED
from fulmen.agent.team.team import Team
from fulmen.sampling import SamplingParams, check_whole


@dataclass(frozen=True, slots=True)
class Review:
    """Work that was judged."""

    worker: Member
    work: Report
    """The worker's last report"""
    review: Report
    """The last judgement of it"""
    num_rounds: int

    @property
    def is_approved(self) -> bool:
        """True if the last reviewer asks for no changes."""
        return is_approved(self.review)


@dataclass(frozen=True, slots=True)
class Try:
    """One of several ways to do a task."""

    member: Member
    report: Report
    score: float


async def fan_out(
    team: Team,
    tasks: Sequence[str],
    *,
    agent: str,
    is_enough: Callable[[Sequence[Report]], Awaitable[bool]] | None = None,
    params: Sequence[SamplingParams] | None = None,
) -> list[Report]:
    """Give each task to a new agent, and return their reports in the order in which they came.

    is_enough  is asked after each report, with all so far; the others are stopped once it is true,
               and have no report. All are waited for if omitted.
    params     sampling of each agent, such as other seeds where the tasks are one; the lead's if
               omitted
    """
    each: Sequence[SamplingParams | None] = params or [None] * len(tasks)
    members = [
        await team.start(agent, words, params=one) for words, one in zip(tasks, each, strict=True)
    ]
    waiting = {asyncio.ensure_future(team.report(one)): one for one in members}
    reports: list[Report] = []
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda one: members.index(waiting[one])):
                reports.append(task.result())
                del waiting[task]
                if is_enough is not None and await is_enough(reports):
                    return reports
    finally:
        await _stopped(team, waiting.values())
        await _all(waiting)
    return reports


async def review_loop(
    team: Team, task: str, *, worker: str, reviewer: str, max_rounds: int = 3
) -> Review:
    """Let one agent work and a new one, which knows nothing but the task and the files, judge it,
    until that approves or the rounds are over. Nothing is merged."""
    check_whole("max_rounds", max_rounds, 1, 1000)
    at_work = await team.start(worker, task)
    for number in range(1, max_rounds + 1):
        work = await _reported(team, at_work)
        words = (
            f"The task of another agent was:\n\n{task}\n\nIts report:\n\n{work.text}\n\n"
            "You see its files. Judge the work, not the report."
        )
        judge = await team.start(reviewer, words, files=at_work.name, sender=LEAD)
        review = await _reported(team, judge)
        if is_approved(review) or not (work.is_done and review.is_done) or number == max_rounds:
            return Review(at_work, work, review, number)
        words = f"A reviewer asks for changes:\n\n{review.text}"
        team.give(at_work, words, sender=LEAD)
    raise AssertionError("max_rounds is 1 or more")


async def best_of_n(
    team: Team,
    exploration: str,
    task: str,
    *,
    agent: str,
    count: int,
    score: Callable[[Member, Report], Awaitable[float]],
) -> list[Try]:
    """Let one worker explore, fork it, and let each fork do the task with another seed; return the
    tries, the best first, the earlier one of equals. What was explored is read once. Nothing is
    merged.

    agent  a kind of workers
    score  judges a fork in its folder, larger is better
    """
    check_whole("count", count, 1, 1000)
    first = await team.start(agent, exploration)
    await _reported(team, first)
    params = team.means.params or SamplingParams()
    forks = []
    for number in range(count):
        forks.append(
            await team.fork(first, params=replace(params, seed=(params.seed or 0) + number))
        )
    for fork in forks:
        team.give(fork, task)
    reports = await _all_reported(team, forks)
    tries = [Try(*pair, await score(*pair)) for pair in zip(forks, reports, strict=True)]
    return sorted(tries, key=lambda one: -one.score)


async def map_reduce(
    team: Team,
    parts: Sequence[str],
    *,
    agent: str,
    reduce: Callable[[Sequence[Report]], str],
    reducer: str | None = None,
) -> tuple[Report, list[Report]]:
    """Give each part to a new agent, side by side, and the reports, in the order of the parts, to
    one more; return its report, and theirs.

    reduce   makes the words of the last task
    reducer  the kind of the last agent, that of the others if omitted
    """
    members = [await team.start(agent, words) for words in parts]
    reports = await _all_reported(team, members)
    last = await team.start(reducer or agent, reduce(reports), sender=LEAD)
    return await _reported(team, last), reports


def is_approved(review: Report) -> bool:
    """Return whether a review asks for no changes."""
    first = review.text.strip().split("\n")[0].strip("*#. ")
    return review.is_done and first == APPROVED


async def _reported(team: Team, member: Member) -> Report:
    """Return an agent's report; stop it if nobody waits for that any more."""
    return (await _all_reported(team, [member]))[0]


async def _all_reported(team: Team, members: Sequence[Member]) -> list[Report]:
    try:
        return [await team.report(one) for one in members]
    finally:
        await _stopped(team, members)


async def _stopped(team: Team, members: Iterable[Member]) -> None:
    await asyncio.gather(*(team.stop(one, is_over=False) for one in list(members)))


async def _all(tasks: Iterable["asyncio.Future[Report]"]) -> None:
    if waiting := list(tasks):
        await asyncio.wait(waiting)
