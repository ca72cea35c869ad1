"""A plan as text: each number that a reader could doubt comes with its formula."""

from collections.abc import Iterator
from typing import Final

from fulmen.plan.forecast import HEADROOM, MAX_STREAMS, PRECISIONS, REACHED, SKEW, Forecast
from fulmen.plan.layout import WIDTH, command, table, wrapped
from fulmen.plan.plan import Plan
from fulmen.plan.rl_cost import REPORT_LENGTH

_LABEL: Final = 24
"""Columns of the labels that lead a line"""


def render_plan(plan: Plan, *, width: int = WIDTH) -> str:
    """Return a plan as plain text of that width."""
    notes = [wrapped(f"- {note}", width, "  ", "    ") for note in plan.notes]
    sections = [
        wrapped(f"{plan.name} ({plan.model_type})", width),
        _render_size(plan, width),
        _render_sequence(plan, width),
        _render_flops(plan, width),
        *([_render_forecasts(plan, width)] if plan.forecasts else []),
        *(
            f"Launch with {engine}\n{command(typed, width)}"
            for engine, typed in plan.launch.items()
        ),
        *(["\n".join(["Notes", *notes])] if notes else []),
        _render_rl(plan, width),
    ]
    return "\n\n".join(sections) + "\n"


def _render_size(plan: Plan, width: int) -> str:
    return "Size\n" + _columns(
        width,
        ("parameters", f"{plan.total_parameters:,}"),
        ("active per token", f"{plan.active_parameters:,} without embedding and head"),
        ("", f"{plan.active_with_head:,} with the head"),
        ("", f"{plan.active_with_head_and_embedding:,} with both"),
        ("checkpoint", f"{_bytes(plan.checkpoint_bytes)} in {plan.num_tensors:,} tensors"),
        *(
            (
                "" if index else "weights held in",
                f"{name:<13}{size / 1e9:8.1f} GB   {PRECISIONS[name]}",
            )
            for index, (name, size) in enumerate(plan.weight_bytes.items())
        ),
    )


def _render_sequence(plan: Plan, width: int) -> str:
    lines = [
        ("cache per token", f"{plan.kv_bytes_per_token:,} bytes = {plan.kv_formula}"),
        ("state", f"{plan.state_bytes:,} bytes = {plan.state_formula}"),
    ]
    if not plan.state_bytes:
        lines[1] = ("state", "none, all layers are softmax attention")
    for length in sorted({plan.context, plan.max_context}):
        total = length * plan.kv_bytes_per_token + plan.state_bytes
        lines.append((f"{length:,} tokens", f"{_bytes(total)} = tokens x cache + state"))
    return "Memory of one sequence\n" + _columns(width, *lines)


def _render_flops(plan: Plan, width: int) -> str:
    lines = []
    for cost in (plan.flops, plan.flops_as_drawn):
        if cost is not None:
            formula = f"F(N) = {cost.per_token:.4g} N + {cost.per_position:.4g} N^2 / 2"
            lines.append((cost.model, formula))
            lines.append(
                (
                    "",
                    f"N = {plan.context:,}: {cost.cumulative(plan.context):.3g} in all, "
                    f"{cost.at(plan.context):.3g} for the next token",
                )
            )
    lines.append(
        (
            f"prompt of {plan.context:,}",
            f"{plan.prefill_flops:.3g} at most = F(N) and the products inside lightning's blocks"
            if plan.state_bytes
            else f"{plan.prefill_flops:.3g} = F(N)",
        )
    )
    about = (
        "FLOPs, F(N) of generating N tokens; N's factor is 2 x active weights with the head, and "
        "lightning attention; N^2's is what an earlier token adds in softmax layers"
    )
    return f"{wrapped(about, width)}\n{_columns(width, *lines)}"


def _render_forecasts(plan: Plan, width: int) -> str:
    header = (
        *("", "weights", "cache tokens", "longest"),
        *("one sequence", "expect", "side by side", "prompt"),
    )
    rows = [_forecast_cells(row, plan.context) for row in plan.forecasts]
    lines = [table(header, rows, width, right=range(1, len(header)))]
    lines += [
        wrapped(
            f"{row.precision}: {row.expert_share:.0%} of the experts in memory, "
            f"{row.expert_share:.0%} to {row.expert_share**SKEW:.0%} of the choices hit",
            width,
            "  ",
            "    ",
        )
        for row in plan.forecasts
        if row.fits and row.expert_share < 1
    ]
    lines += ["", *(wrapped(line, width, "  ", "    ") for line in _legend(plan))]
    return f"{wrapped(f'Forecast on {plan.hardware}', width)}\n" + "\n".join(lines)


def _forecast_cells(row: Forecast, context: int) -> tuple[str, ...]:
    weights = row.precision, f"{row.weight_bytes / 1e9:,.1f} GB"
    if not row.max_model_len:
        return *weights, "does not fit"
    start = *weights, f"{row.cache_tokens:,}", f"{row.max_model_len:,}"
    if not row.fits:
        return *start, f"too short for {context:,} tokens"
    expect = "-"
    if row.decode_low is not None and row.decode_high is not None:
        expect = f"{_rate(row.decode_low)} to {_rate(row.decode_high)}"
    together = f"{_rate(row.streams_bound)} by {row.streams}"
    prompt = "-" if row.prompt_seconds is None else f"{row.prompt_seconds:,.1f} s"
    return *start, f"{_rate(row.decode_bound)}/s", expect, together, prompt


def _legend(plan: Plan) -> Iterator[str]:
    """Explain the columns of the forecasts."""
    yield "cache tokens: tokens that fit beside the weights, over all sequences"
    yield "longest: tokens of the longest sequence that fits, alone" + (
        f", {HEADROOM:.0%} of the cache left free" if plan.is_on_gpus else ""
    )
    fitting = [row for row in plan.forecasts if row.fits]
    if not fitting:
        return
    yield (
        f"one sequence: tokens a second at {plan.context:,} tokens if only reading took time: "
        "bandwidth / (active weights + cache + state), with the head and without the embedding"
    )
    yield (
        "side by side: tokens a second of all sequences of that length that fit together, at most "
        f"{MAX_STREAMS}, with uniform routing"
    )
    if plan.is_on_gpus:
        yield (
            "expect: no forecast, a single sequence is bound by the exchanges between GPUs, which "
            "are not counted here"
        )
        yield (
            f"prompt: least time for {plan.context:,} tokens: FLOPs / (GPUs x dense rate), the FP8 "
            "rate for FP8 weights"
        )
        return
    if any(row.expert_share < 1 for row in fitting):
        yield (
            "expect, with experts on disk: from uniform routing, where a share s in memory serves "
            f"a share s of the choices, to skewed routing, where it serves s^{SKEW}; the disk's "
            "time is added to the memory's, of whose bandwidth "
            f"{REACHED[0]:.0%} to {REACHED[1]:.0%} are reached"
        )
        yield "prompt: a chunk of any length reads each expert that is not in memory once"
    if any(row.expert_share == 1 for row in fitting):
        yield (
            f"expect, with all in memory: {REACHED[0]:.0%} to {REACHED[1]:.0%} of the bound, which "
            "public engines reached when measured"
        )


def _render_rl(plan: Plan, width: int) -> str:
    rl = plan.rl
    cost = f", {rl.usd:,.0f} USD at {rl.usd_per_gpu_hour:.2f} USD an hour" if rl.usd else ""
    title = f"Reinforcement learning like the M1 report's, on {rl.gpus}"
    return f"{wrapped(title, width)}\n" + _columns(
        width,
        ("GPU hours", f"{rl.gpu_hours:,.0f}, {rl.days:,.1f} days{cost}"),
        (
            "",
            f"= 512 H800 x 21 days x 24 h x {rl.relative_flops:.3f}, the FLOPs of generating "
            f"{REPORT_LENGTH:,} tokens against M1's"
            + ("" if rl.usd else ", and the ratio of bf16 rates against the H800"),
        ),
        ("training state", f"{_bytes(rl.optimizer_bytes)} = 16 bytes a parameter (AdamW, mixed)"),
    )


def _columns(width: int, *rows: tuple[str, str]) -> str:
    """Return labels with their values beside them, or below where that is too narrow."""
    lines = []
    for label, value in rows:
        if width < 2 * _LABEL:
            lines += [f"  {label}"] * bool(label) + [wrapped(value, width, "    ")]
        else:
            start = f"  {label}".ljust(_LABEL)
            lines.append(wrapped(start + value, width, "", " " * _LABEL))
    return "\n".join(lines)


def _bytes(size: int) -> str:
    return f"{size:,} bytes ({size / 1024**3:,.1f} GiB)"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"
