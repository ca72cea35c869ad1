"""A plan as text: each number that a reader could doubt comes with its formula."""

import textwrap
from collections.abc import Iterable, Iterator

from fulmen.plan.forecast import HEADROOM, MAX_STREAMS, PRECISIONS, REACHED, SKEW, Forecast
from fulmen.plan.plan import Plan
from fulmen.plan.rl_cost import REPORT_LENGTH


def render_plan(plan: Plan) -> str:
    """Return a plan as plain text."""
    sections = [
        f"{plan.name} ({plan.model_type})",
        _render_size(plan),
        _render_sequence(plan),
        _render_flops(plan),
        *([_render_forecasts(plan)] if plan.forecasts else []),
        *(
            f"Launch with {engine}\n  " + command.replace(" --", " \\\n    --")
            for engine, command in plan.launch.items()
        ),
        *(
            ["Notes\n" + _indented(_wrapped(f"- {note}" for note in plan.notes))]
            if plan.notes
            else []
        ),
        _render_rl(plan),
    ]
    return "\n\n".join(sections) + "\n"


def _render_size(plan: Plan) -> str:
    return "Size\n" + _columns(
        ("parameters", f"{plan.total_parameters:,}"),
        ("active per token", f"{plan.active_parameters:,} without embedding and head"),
        ("", f"{plan.active_with_head:,} with the head"),
        ("", f"{plan.active_with_head_and_embedding:,} with both"),
        ("checkpoint", f"{_bytes(plan.checkpoint_bytes)} in {plan.num_tensors:,} tensors"),
        *(
            ("weights held in" if index == 0 else "", f"{name:<13}{size / 1e9:8.1f} GB   {bits}")
            for index, ((name, size), bits) in enumerate(
                zip(plan.weight_bytes.items(), PRECISIONS.values(), strict=True)
            )
        ),
    )


def _render_sequence(plan: Plan) -> str:
    lines = [
        ("cache per token", f"{plan.kv_bytes_per_token:,} bytes = {plan.kv_formula}"),
        ("state", f"{plan.state_bytes:,} bytes = {plan.state_formula}"),
    ]
    if not plan.state_bytes:
        lines[1] = ("state", "none, all layers are softmax attention")
    for length in sorted({plan.context, plan.max_context}):
        total = length * plan.kv_bytes_per_token + plan.state_bytes
        lines.append((f"{length:,} tokens", f"{_bytes(total)} = tokens x cache + state"))
    return "Memory of one sequence\n" + _columns(*lines)


def _render_flops(plan: Plan) -> str:
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
    return (
        "FLOPs, F(N) of generating N tokens; N's factor is 2 x active weights with the head, and\n"
        "lightning attention; N^2's is what an earlier token adds in softmax layers\n"
        + _columns(*lines)
    )


def _render_forecasts(plan: Plan) -> str:
    lines = [
        f"{'':<13}{'weights':>10}{'cache tokens':>14}{'longest':>11}{'one sequence':>14}"
        f"{'expect':>15}{'side by side':>16}{'prompt':>11}",
        *(_render_forecast(row, plan.context) for row in plan.forecasts),
    ]
    lines += [
        f"{row.precision:<13}{row.expert_share:.0%} of the experts in memory: "
        f"{row.expert_share:.0%} to {row.expert_share**SKEW:.0%} of the choices hit"
        for row in plan.forecasts
        if row.fits and row.expert_share < 1
    ]
    return f"Forecast on {plan.hardware}\n" + _indented([*lines, "", *_wrapped(_legend(plan))])


def _render_forecast(row: Forecast, context: int) -> str:
    start = f"{row.precision:<13}{row.weight_bytes / 1e9:>7.1f} GB"
    if not row.max_model_len:
        return f"{start}  does not fit"
    start += f"{row.cache_tokens:>14,}{row.max_model_len:>11,}"
    if not row.fits:
        return f"{start}  too short for {context:,} tokens"
    expect = "-"
    if row.decode_low is not None and row.decode_high is not None:
        expect = f"{_rate(row.decode_low)} to {_rate(row.decode_high)}"
    together = f"{_rate(row.streams_bound)} by {row.streams}"
    prompt = "-" if row.prompt_seconds is None else f"{row.prompt_seconds:,.1f} s"
    return f"{start}{_rate(row.decode_bound) + '/s':>14}{expect:>15}{together:>16}{prompt:>11}"


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
            f"a share s of the choices, to skewed routing, where it serves s^{SKEW} and disk and "
            "memory are read at the same time"
        )
        yield "prompt: a chunk of any length reads each expert that is not in memory once"
    if any(row.expert_share == 1 for row in fitting):
        yield (
            f"expect, with all in memory: {REACHED[0]:.0%} to {REACHED[1]:.0%} of the bound, which "
            "public engines reached when measured"
        )


def _wrapped(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield from textwrap.wrap(line, 96, subsequent_indent="  ", break_on_hyphens=False)


def _render_rl(plan: Plan) -> str:
    rl = plan.rl
    cost = f", {rl.usd:,.0f} USD at {rl.usd_per_gpu_hour:.2f} USD an hour" if rl.usd else ""
    return f"Reinforcement learning like the M1 report's, on {rl.gpus}\n" + _columns(
        ("GPU hours", f"{rl.gpu_hours:,.0f}, {rl.days:,.1f} days{cost}"),
        (
            "",
            f"= 512 H800 x 21 days x 24 h x {rl.relative_flops:.3f}, the FLOPs of generating "
            f"{REPORT_LENGTH:,} tokens",
        ),
        ("", "against M1's" + ("" if rl.usd else ", and the ratio of bf16 rates against the H800")),
        ("training state", f"{_bytes(rl.optimizer_bytes)} = 16 bytes a parameter (AdamW, mixed)"),
    )


def _columns(*rows: tuple[str, str]) -> str:
    return "\n".join(f"  {label:<22}{value}" for label, value in rows)


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"  {line}" if line else line for line in lines)


def _bytes(size: int) -> str:
    return f"{size:,} bytes ({size / 1024**3:,.1f} GiB)"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"
