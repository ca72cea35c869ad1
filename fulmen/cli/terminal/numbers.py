"""Numbers of a run, as the bottom line and /usage write them."""

from fulmen.agent import Trajectory


def of_limit(what: str, count: int, limit: int | None) -> str:
    """Write a count, and the most that it may be."""
    return f"{what} {count}" if limit is None else f"{what} {count} of {limit}"


def short_count(count: int) -> str:
    """Write a count in few characters."""
    return (
        str(count)
        if count < 1000
        else f"{count / 1000:.1f}k"
        if count < 10**6
        else f"{count / 10**6:.1f}M"
    )


def usage_rows(trajectory: Trajectory) -> list[str]:
    """Return lines about what a run cost."""
    rows = ["            prompt    cached       new  of thought"]
    usage = trajectory.usage
    counts = [
        ("the run", [usage[f"{one}_tokens"] for one in ("prompt", "cached", "new", "thinking")])
    ]
    if trajectory.steps:
        last = trajectory.steps[-1].answer
        own = [last.num_prompt_tokens, last.num_cached_tokens]
        counts.append(("last answer", [*own, last.num_new_tokens, last.num_thinking_tokens]))
    return rows + [f"{name:<11}" + "".join(f"{one:>10,}" for one in row) for name, row in counts]
