"""What a model needs and what it will reach, computed before anything is downloaded.

Everything follows from a config.json and from a line about the hardware: sizes and FLOPs
(`flops.py`), a forecast for each precision (`forecast.py`), the command that serves the model at
scale, and what reinforcement learning like the M1 report's would cost.
"""

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fulmen.catalog import find_config, get_card, published_config
from fulmen.models import (
    Config,
    GenerationCost,
    checkpoint_bytes,
    count_parameters,
    count_tensors,
    generation_cost,
    prefill_flops,
)
from fulmen.plan.figure1 import as_drawn
from fulmen.plan.forecast import (
    HEADROOM,
    MAX_STREAMS,
    PRECISIONS,
    REACHED,
    SKEW,
    Forecast,
    Reading,
    forecast_machine,
    on_gpus,
    parse_gpus,
    readings,
    weights_at,
)
from fulmen.plan.launch import launch_commands
from fulmen.plan.rl_cost import REPORT_LENGTH, RLCost, rl_cost
from fulmen.units import parse_bytes, parse_rate


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All that is known about running one model, as numbers."""

    name: str
    model_type: str
    total_parameters: int
    active_parameters: int
    """Of one token, without embedding and head, as the reports count."""
    active_with_head: int
    active_with_head_and_embedding: int
    num_tensors: int
    checkpoint_bytes: int
    weight_bytes: dict[str, int]
    """By precision."""
    kv_bytes_per_token: int
    kv_formula: str
    state_bytes: int
    """Of one sequence, whatever its length."""
    state_formula: str
    max_context: int
    """What the makers say the model was made for, else max_position_embeddings."""
    context: int
    """The length that the forecasts are for."""
    flops: GenerationCost
    """From first principles."""
    flops_as_drawn: GenerationCost | None
    """As the report's figure counts; None for a model that is not in it."""
    prefill_flops: float
    """Of a prompt of `context` tokens."""
    hardware: str | None
    is_on_gpus: bool
    """Whether `hardware` is GPUs, not one machine without."""
    forecasts: tuple[Forecast, ...]
    launch: dict[str, str]
    """Commands by engine."""
    rl: RLCost
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def make_plan(
    name: str,
    *,
    gpus: str | None = None,
    ram: str | None = None,
    disk: str | None = None,
    memory: str = "40GB/s",
    context: int | None = None,
    rl_gpus: str = "512xH800",
) -> Plan:
    """Plans for a model on some hardware, from configs alone.

    name     a catalog name, a hub id in the catalog, or a local folder, config.json or GGUF
    gpus     as 8xH800; or, for one machine without,
    ram      as 24GiB,
    disk     how fast it reads, as 3GB/s: experts that do not fit in memory stay there, and
    memory   how fast the processor reads memory; the default is two channels of DDR4 or DDR5
    context  the length to plan for; by default 131,072 tokens, 8,192 on a machine without GPUs
    rl_gpus  for the cost of reinforcement learning
    """
    if gpus is not None and ram is not None:
        raise ValueError("--gpus and --ram are two plans, ask for one of them")
    if disk is not None and ram is None:
        raise ValueError("--disk is about a machine without GPUs and needs --ram")
    config = find_config(name)
    card = None if Path(name).expanduser().exists() else get_card(name)
    max_context = config.max_position_embeddings if card is None else card.context
    if context is None:
        context = min(131_072 if ram is None else 8_192, max_context)
    if not 1 <= context <= config.max_position_embeddings:
        raise ValueError(
            f"--context {context} must be between 1 and the model's max_position_embeddings, "
            f"{config.max_position_embeddings}"
        )
    counts = count_parameters(config)
    kv_bytes, kv_formula, state_bytes, state_formula = _sequence(config)
    rows = readings(config, kv_bytes=kv_bytes, state_bytes=state_bytes, context=context)
    hardware: str | None = None
    forecasts: list[Forecast] = []
    launch: dict[str, str] = {}
    notes: list[str] = []
    if gpus is not None:
        hardware = str(parse_gpus(gpus))
        forecasts = on_gpus(rows, parse_gpus(gpus), config, context)
    elif ram is not None:
        hardware = f"{ram} read at {memory}" + (f", disk {disk}" if disk else "")
        forecasts = _on_machine(rows, ram, memory, disk)
    if gpus is not None and (card is None or card.source is None):
        checkpoint = name if card is None else card.hub
        launch, notes = launch_commands(config, checkpoint, parse_gpus(gpus), rows, max_context)
    return Plan(
        name=name if card is None else card.title,
        model_type=config.model_type,
        total_parameters=counts.total,
        active_parameters=counts.active,
        active_with_head=counts.active + (counts.head or counts.embedding),
        active_with_head_and_embedding=counts.active + counts.head + counts.embedding,
        num_tensors=count_tensors(config),
        checkpoint_bytes=checkpoint_bytes(config),
        weight_bytes={name: weights_at(config, name).total for name in PRECISIONS},
        kv_bytes_per_token=kv_bytes,
        kv_formula=kv_formula,
        state_bytes=state_bytes,
        state_formula=state_formula,
        max_context=max_context,
        context=context,
        flops=generation_cost(config, "first principles"),
        flops_as_drawn=_drawn(config),
        prefill_flops=prefill_flops(config, context),
        hardware=hardware,
        is_on_gpus=gpus is not None,
        forecasts=tuple(forecasts),
        launch=launch,
        rl=rl_cost(config, parse_gpus(rl_gpus)),
        notes=tuple(notes),
    )


def _on_machine(rows: Iterable[Reading], ram: str, memory: str, disk: str | None) -> list[Forecast]:
    ram_bytes, memory_rate = parse_bytes(ram), parse_rate(memory)
    disk_rate = None if disk is None else parse_rate(disk)
    return [
        forecast_machine(row, ram_bytes=ram_bytes, memory=memory_rate, disk=disk_rate)
        for row in rows
        if row.precision != "int8-experts"  # a mode of GPU engines
    ]


def _sequence(config: Config) -> tuple[int, str, int, str]:
    """Cache bytes of a token and state bytes of a sequence, each with its formula."""
    num_softmax = sum(config.attn_type_list)
    num_lightning = config.num_hidden_layers - num_softmax
    heads, dim, kv_heads = config.num_attention_heads, config.head_dim, config.num_key_value_heads
    kv_formula = (
        f"{num_softmax} layers x 2 x {kv_heads} heads x {dim} x 2 bytes (bf16; half in int8)"
    )
    state_formula = f"{num_lightning} layers x {heads} heads x {dim} x {dim} x 4 bytes (float32)"
    return (
        num_softmax * 2 * kv_heads * dim * 2,
        kv_formula,
        num_lightning * heads * dim * dim * 4,
        state_formula,
    )


def _drawn(config: Config) -> GenerationCost | None:
    if config != published_config("minimax-m1-80k"):
        return None
    return replace(as_drawn()[0], model="as the report draws")


# A plan as text.


def render_plan(plan: Plan) -> str:
    """A plan as plain text; a number that a reader could doubt comes with its formula."""
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
        f"{'expect':>15}{'side by side':>16}{'prompt':>11}"
    ]
    for row in plan.forecasts:
        start = f"{row.precision:<13}{row.weight_bytes / 1e9:>7.1f} GB"
        if not row.max_model_len:
            lines.append(f"{start}  does not fit")
            continue
        start += f"{row.cache_tokens:>14,}{row.max_model_len:>11,}"
        if not row.fits:
            lines.append(f"{start}  too short for {plan.context:,} tokens")
            continue
        expect = "-"
        if row.decode_low is not None and row.decode_high is not None:
            expect = f"{_rate(row.decode_low)} to {_rate(row.decode_high)}"
        together = f"{_rate(row.streams_bound)} by {row.streams}"
        prompt = "-" if row.prompt_seconds is None else f"{row.prompt_seconds:,.1f} s"
        lines.append(
            f"{start}{_rate(row.decode_bound) + '/s':>14}{expect:>15}{together:>16}{prompt:>11}"
        )
    lines += [
        f"{row.precision:<13}{row.expert_share:.0%} of the experts in memory: "
        f"{row.expert_share:.0%} to {row.expert_share**SKEW:.0%} of the choices hit"
        for row in plan.forecasts
        if row.fits and row.expert_share < 1
    ]
    return f"Forecast on {plan.hardware}\n" + _indented([*lines, "", *_wrapped(_legend(plan))])


def _legend(plan: Plan) -> Iterator[str]:
    """What the columns of the forecasts mean."""
    yield "cache tokens: what fits beside the weights, of all sequences together"
    yield "longest: tokens of the longest sequence that fits, alone" + (
        f", {HEADROOM:.0%} of the cache left free" if plan.is_on_gpus else ""
    )
    fitting = [row for row in plan.forecasts if row.fits]
    if not fitting:
        return
    yield (
        f"one sequence: tokens a second, {plan.context:,} tokens long, if nothing but reading took "
        "time: bandwidth / (active weights + cache + state), the head read, the embedding not"
    )
    yield (
        f"side by side: all sequences together, as many of that length as fit, {MAX_STREAMS} at "
        "most, with uniform routing"
    )
    if plan.is_on_gpus:
        yield (
            "expect: for a single sequence the exchanges between GPUs decide, which are not "
            "counted here"
        )
        yield (
            f"prompt: at least, {plan.context:,} tokens; FLOPs / (GPUs x dense rate), the FP8 rate "
            "for FP8 weights"
        )
        return
    if any(row.expert_share < 1 for row in fitting):
        yield (
            "expect, with experts on disk: from uniform routing, where a share s in memory hits s, "
            f"to skewed routing, where it hits s^{SKEW} and disk and memory overlap"
        )
        yield "prompt: a chunk of any length reads each expert that is not in memory once"
    if any(row.expert_share == 1 for row in fitting):
        yield (
            f"expect, with all in memory: {REACHED[0]:.0%} to {REACHED[1]:.0%} of the bound, as "
            "public engines were measured to reach"
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
