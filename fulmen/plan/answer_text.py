"""The answer of a plan in words: does it fit, where, how fast, and what to type."""

import textwrap

from fulmen.plan.answer import TITLES, TYPICAL_DISK, Way
from fulmen.plan.plan import Plan

_GIB = 2**30


def render_answer(plan: Plan) -> str:
    """Return the answer of a plan as plain text: its first line says yes or no."""
    if plan.ways:
        sections = _on_machine(plan)
    elif plan.is_on_gpus:
        sections = _on_gpus(plan)
    else:
        sections = [
            f"{plan.name}: {plan.total_parameters / 1e9:,.1f} billion parameters, "
            f"{plan.checkpoint_bytes / _GIB:,.1f} GiB as published"
        ]
    return "\n\n".join(sections) + "\n"


def best_way(plan: Plan) -> Way | None:
    """Return the way that loses least among those that fit: the published weights, else most
    bits."""
    fitting = [way for way in plan.ways if way.fits and way.commands]
    return max(fitting, key=lambda way: (way.is_published, way.needed_bytes), default=None)


def _on_machine(plan: Plan) -> list[str]:
    best = best_way(plan)
    runnable = [way for way in plan.ways if way.commands]
    smallest = min(runnable, key=lambda way: way.needed_bytes)
    if best is None:
        yes = (
            f"No: {plan.name} does not fit in {plan.ram} of memory. "
            f"The smallest way, {smallest.title}, needs {_gib(smallest.needed_bytes)}."
        )
    else:
        published = ", as published" if best.is_published else ""
        yes = (
            f"Yes: {plan.name} fits in {plan.ram} of memory, in {best.title}{published}. Expect "
            f"{_rates(best.decode_low, best.decode_high)} tokens a second."
        )
    sections = [_wrapped(yes), _table(plan)]
    if any(way.from_disk for way in plan.ways) and best is None:
        sections.append(_disk(plan))
    where = (
        "What to type"
        if best is not None
        else (f"What to type on a machine with {_gib(smallest.needed_bytes)} or more")
    )
    way = best or smallest
    text = where + "\n" + "\n".join(f"  {command}" for command in way.commands)
    if plan.checkpoint_bytes > 10 * _GIB and len(way.commands) > 1:
        rounded = plan.weight_bytes[way.precision]
        text += "\n" + _wrapped(
            f"It takes {_gib(plan.checkpoint_bytes)} of disk for the published files and "
            f"{_gib(rounded)} for the rounded ones; rounding works piece by piece, in less memory.",
            "  ",
        )
    elif plan.checkpoint_bytes > 10 * _GIB:
        text += f"\n  It takes {_gib(plan.checkpoint_bytes)} of disk."
    return [*sections, text]


def _table(plan: Plan) -> str:
    lines = [f"  {'in memory':<22}{'needs':>12}  {'fits':<6}tokens a second"]
    for way in plan.ways:
        title = way.title + (" (as published)" if way.is_published else "")
        rates = _rates(way.decode_low, way.decode_high)
        rates = rates if way.fits else f"{rates} where it fits"
        lines.append(
            f"  {title:<22}{_gib(way.needed_bytes):>12}  {'yes' if way.fits else 'no':<6}{rates}"
        )
    about = (
        f"needs: all weights, one conversation of {plan.context:,} tokens (--context) and 2 GiB "
        "for the system. tokens a second: a forecast for one conversation, from what public "
        f"engines reach of the memory's read speed, here {plan.memory} (--memory)."
    )
    return "\n".join(lines) + "\n" + _wrapped(about, "  ")


def _disk(plan: Plan) -> str:
    ways = [way for way in plan.ways if way.from_disk is not None and way.commands]
    way = min(ways, key=lambda way: way.needed_bytes)
    assert way.from_disk is not None
    disk = plan.disk or f"{TYPICAL_DISK}, a usual speed"
    return "Experts on disk: not yet\n" + _wrapped(
        f"Fulmen holds all weights in memory today. If it read the experts that do not fit from "
        f"disk ({disk}), the forecast in {way.title} would be "
        f"{_rates(*way.from_disk)} tokens a second.",
        "  ",
    )


def _on_gpus(plan: Plan) -> list[str]:
    fitting = [row for row in plan.forecasts if row.fits]
    if plan.launch:
        engines = " or ".join(_ENGINES[engine] for engine in plan.launch)
        longest = max(row.max_model_len for row in plan.forecasts)
        answer = f"Yes: {plan.name} runs on {plan.hardware} with {engines}"
        answer += f", up to {longest:,} tokens." if longest else "."
    elif fitting:
        answer = f"Yes: {plan.name} fits on {plan.hardware}."
    else:
        answer = f"No: {plan.name} does not fit on {plan.hardware}."
    lines = [f"  {'on the GPUs':<16}{'weights':>12}  {'fits':<6}{'longest':>10}  tokens a second"]
    for row in plan.forecasts:
        fits = "yes" if row.fits else "no"
        longest_shown = f"{row.max_model_len:,}" if row.max_model_len else "-"
        rate = f"at most {_rate(row.decode_bound)}" if row.fits else "-"
        row_text = f"{TITLES[row.precision]:<16}{_gib(row.weight_bytes):>12}  {fits:<6}"
        lines.append(f"  {row_text}{longest_shown:>10}  {rate}")
    about = (
        f"fits: with a conversation of {plan.context:,} tokens (--context). tokens a second: a "
        "bound for one conversation, from the GPUs' read speed; engines reach less."
    )
    sections = [_wrapped(answer), "\n".join(lines) + "\n" + _wrapped(about, "  ")]
    sections += [
        f"What to type, with {_ENGINES[engine]}\n  " + command.replace(" --", " \\\n    --")
        for engine, command in plan.launch.items()
    ]
    notes = [*plan.notes, "Fulmen itself does not spread a model over GPUs yet"]
    sections.append("Notes\n" + "\n".join(_wrapped(f"- {note}", "  ", "    ") for note in notes))
    return sections


_ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}


def _wrapped(text: str, indent: str = "", later: str | None = None) -> str:
    return textwrap.fill(
        text,
        88,
        initial_indent=indent,
        subsequent_indent=indent if later is None else later,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _gib(size: int) -> str:
    """Return a size in GiB that is never shown as smaller than it is."""
    tenths = -(-size * 10 // _GIB)
    return f"{tenths / 10:,.1f} GiB"


def _rates(low: float, high: float) -> str:
    return f"{_rate(low)} to {_rate(high)}"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
