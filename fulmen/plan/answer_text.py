"""The answer of a plan in words: does it fit, where, how fast, and what to type."""

from fulmen.plan.answer import TITLES, TYPICAL_DISK, Way
from fulmen.plan.launch import NO_COMMAND
from fulmen.plan.layout import WIDTH, command, table, wrapped
from fulmen.plan.plan import Plan

_GIB = 2**30


def render_answer(plan: Plan, *, width: int = WIDTH) -> str:
    """Return the answer of a plan as plain text of that width: its first words say yes or no."""
    if plan.ways:
        sections = _on_machine(plan, width)
    elif plan.is_on_gpus:
        sections = _on_gpus(plan, width)
    else:
        about = (
            f"{plan.name}: {plan.total_parameters / 1e9:,.1f} billion parameters, "
            f"{_gib(plan.checkpoint_bytes)} as published"
        )
        sections = [wrapped(about, width), *_notes(plan.notes, width)]
    return "\n\n".join(sections) + "\n"


def best_way(plan: Plan) -> Way | None:
    """Return the way that loses least among those that fit: the published weights, else most
    bits."""
    fitting = [way for way in plan.ways if way.fits and way.commands]
    return max(fitting, key=lambda way: (way.is_published, way.needed_bytes), default=None)


def _on_machine(plan: Plan, width: int) -> list[str]:
    best = best_way(plan)
    runnable = [way for way in plan.ways if way.commands]
    smallest = min(runnable, key=lambda way: way.needed_bytes)
    if best is None:
        yes = (
            f"No: {plan.name} does not fit in {plan.ram} of memory. "
            f"The smallest way, {smallest.title}, needs {_needed(smallest)}."
        )
    else:
        published = ", as published" if best.is_published else ""
        yes = (
            f"Yes: {plan.name} fits in {plan.ram} of memory, in {best.title}{published}. Expect "
            f"{_rates(best.decode_low, best.decode_high)} tokens a second."
        )
    sections = [wrapped(yes, width), _machine_table(plan, width)]
    if any(way.from_disk and way.commands for way in plan.ways) and (best is None or plan.disk):
        sections.append(_disk(plan, width))
    where = (
        "What to type"
        if best is not None
        else f"What to type on a machine with {_needed(smallest)} or more"
    )
    way = best or smallest
    lines = [wrapped(where, width), *(command(typed, width) for typed in way.commands)]
    if plan.checkpoint_bytes > 10 * _GIB and len(way.commands) > 1:
        about = (
            f"It takes {_gib(plan.checkpoint_bytes)} of disk for the published files and "
            f"{_gib(plan.weight_bytes[way.precision])} for the rounded ones; rounding works piece "
            "by piece, in less memory."
        )
        lines.append(wrapped(about, width, "  "))
    elif plan.checkpoint_bytes > 10 * _GIB:
        lines.append(wrapped(f"It takes {_gib(plan.checkpoint_bytes)} of disk.", width, "  "))
    return [*sections, "\n".join(lines), *_notes(plan.notes, width)]


def _machine_table(plan: Plan, width: int) -> str:
    rows = []
    for way in plan.ways:
        title = way.title + (" (as published)" if way.is_published else "")
        rates = _rates(way.decode_low, way.decode_high)
        rates = rates if way.fits else f"{rates} with enough memory"
        rows.append((title, _needed(way), "yes" if way.fits else "no", rates))
    about = (
        f"needs: all weights, one conversation of {plan.context:,} tokens (--context) and 2 GiB "
        "for the system. tokens a second: a forecast for one conversation, from what public "
        f"engines reach of the memory's read speed, {plan.memory} "
        f"({_SOURCES[plan.memory_source]})."
    )
    header = ("in memory", "needs", "fits", "tokens a second")
    return table(header, rows, width, right=(1,)) + "\n" + wrapped(about, width, "  ")


_SOURCES = {
    "given": "--memory",
    "measured here": "measured here",
    "assumed": "assumed; --memory names another",
}
"""Origins of the memory's read speed, for the line below the table"""


def _disk(plan: Plan, width: int) -> str:
    ways = [way for way in plan.ways if way.from_disk is not None and way.commands]
    way = min(ways, key=lambda way: way.needed_bytes)
    assert way.from_disk is not None
    disk = plan.disk or f"{TYPICAL_DISK}, a usual speed; --disk names another"
    about = (
        "Fulmen holds all weights in memory today. If it read the experts that do not fit from "
        f"disk ({disk}), the forecast in {way.title} would be {_rates(*way.from_disk)} tokens a "
        "second: a layer's experts are known only once the layer before is done, so the time of "
        "the disk is added to that of the memory."
    )
    return "Experts on disk: not yet\n" + wrapped(about, width, "  ")


def _on_gpus(plan: Plan, width: int) -> list[str]:
    rows = []
    for row in plan.forecasts:
        is_served = row.precision == plan.launch_precision
        title = TITLES[row.precision] + (" (served)" if is_served else "")
        longest = f"{row.max_model_len:,}" if row.max_model_len else "-"
        rate = f"at most {_rate(row.decode_bound)}" if row.fits else "-"
        fits = "yes" if row.fits else "no"
        rows.append((title, _gib(row.weight_bytes), fits, longest, rate))
    about = (
        f"fits: with a conversation of {plan.context:,} tokens (--context). tokens a second: a "
        "bound for one conversation, from the GPUs' read speed; engines reach less."
    )
    if plan.launch:
        about = f"served: by the commands below; other lines are for comparison. {about}"
    header = ("on the GPUs", "weights", "fits", "longest", "tokens a second")
    sections = [
        wrapped(_answer_on_gpus(plan), width),
        table(header, rows, width, right=(1, 3)) + "\n" + wrapped(about, width, "  "),
    ]
    sections += [
        f"What to type, with {_ENGINES[engine]}\n{command(typed, width)}"
        for engine, typed in plan.launch.items()
    ]
    notes = [note for note in plan.notes if not note.startswith(NO_COMMAND)]
    return sections + _notes([*notes, "Fulmen itself does not spread a model over GPUs yet"], width)


def _answer_on_gpus(plan: Plan) -> str:
    """Return the answer that the commands keep: their precision and their limit."""
    if plan.launch_precision is None:
        refused = next(note for note in plan.notes if note.startswith(NO_COMMAND))
        reason = refused.removeprefix(NO_COMMAND)
        fits = any(row.fits for row in plan.forecasts)
        verb = "cannot be served" if fits else "does not fit"
        return f"No: {plan.name} {verb} on {plan.hardware}. {reason[0].upper()}{reason[1:]}."
    engines = " or ".join(_ENGINES[engine] for engine in plan.launch)
    served = f"runs on {plan.hardware} with {engines}, {_SERVED[plan.launch_precision]}"
    longest = f"{plan.launch_max_model_len:,} tokens"
    if plan.fits:
        return f"Yes: {plan.name} {served}, up to {longest}."
    return (
        f"Only up to {longest}: {plan.name} {served}, but not with {plan.context:,} tokens "
        "(--context)."
    )


_ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}
_SERVED = {"bf16": "in bf16", "fp8": "in FP8", "int8-experts": "with 8-bit experts"}
"""Precisions of the commands, as the end of a sentence"""


def _notes(notes: list[str] | tuple[str, ...], width: int) -> list[str]:
    """Return the section of the notes, if there are any."""
    if not notes:
        return []
    return ["Notes\n" + "\n".join(wrapped(f"- {note}", width, "  ", "    ") for note in notes)]


def _gib(size: int) -> str:
    return f"{size / _GIB:,.1f} GiB"


def _needed(way: Way) -> str:
    """Return the memory that a way needs, never shown as less than it is."""
    tenths = -(-way.needed_bytes * 10 // _GIB)
    return f"{tenths / 10:,.1f} GiB"


def _rates(low: float, high: float) -> str:
    return f"{_rate(low)} to {_rate(high)}"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
