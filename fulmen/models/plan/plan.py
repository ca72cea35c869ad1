"""What a model needs and what it will reach, computed before anything is downloaded.

Everything follows from a config.json and from a line about the hardware: sizes and FLOPs
(`flops.py`), a forecast for each precision (`forecast.py`), the command that serves the model at
scale, and what reinforcement learning like the M1 report's would cost.
"""

import shlex
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from fulmen.models.catalog import find_config, get_card, published_config
from fulmen.models.checkpoint import Config
from fulmen.models.config import PackedConfig
from fulmen.models.flops import (
    GenerationCost,
    checkpoint_bytes,
    count_parameters,
    count_tensors,
    generation_cost,
    prefill_flops,
)
from fulmen.models.m1 import M1Config
from fulmen.models.plan.figure1 import as_drawn
from fulmen.models.plan.forecast import (
    ACCELERATORS,
    HEADROOM,
    MAX_STREAMS,
    PRECISIONS,
    REACHED,
    SKEW,
    USABLE,
    Forecast,
    Gpus,
    Reading,
    forecast_gpus,
    forecast_machine,
    parse_bytes,
    parse_gpus,
    parse_rate,
    readings,
    weights_at,
)

# Launch commands of the engines that carry a model at scale.

_NODE_SIZES: Final = (1, 2, 4, 8)


def _launch(
    config: Config, checkpoint: str, gpus: Gpus, rows: list[Reading], max_context: int
) -> tuple[dict[str, str], list[str]]:
    """The command of each engine, by its name, and what to know about them."""
    if isinstance(config.quantization_config, PackedConfig):
        return {}, ["no launch command: only fulmen reads what fulmen quantize wrote"]
    if gpus.count not in _NODE_SIZES:
        return {}, ["no launch command: engines split a model over 1, 2, 4 or 8 GPUs of a node"]
    is_m1 = isinstance(config, M1Config)
    stored = "fp8" if config.quantization_config else "bf16"
    wanted = ("bf16", "int8-experts") if is_m1 else (stored,)
    rows = [row for row in rows if row.precision in wanted]
    context = rows[0].context
    forecasts = _on_gpus(rows, gpus, config, context)
    # The first that holds a sequence of the planned length, else the one with the longest.
    row = max(forecasts, key=lambda row: (row.fits, 0 if row.fits else row.max_model_len))
    if not row.max_model_len:
        return {}, [f"no launch command: {_too_few(config, gpus, rows)}"]
    checkpoint = shlex.quote(checkpoint)
    length = min(max(max_context, context), row.max_model_len)
    notes = []
    if not row.fits:
        notes.append(
            f"{context:,} tokens do not fit, the limit in the command is {length:,}; --context "
            f"{length} forecasts the speed at that length"
        )
    is_limited = length < config.max_position_embeddings
    if is_m1:
        quantisation = " --quantization experts_int8" if row.precision == "int8-experts" else ""
        command = (
            f"SAFETENSORS_FAST_GPU=1 vllm serve {checkpoint} --trust-remote-code "
            f"--tensor-parallel-size {gpus.count}{quantisation} --dtype bfloat16 "
            f"--gpu-memory-utilization {USABLE['minimax_m1']:.2f} --max-model-len {length} "
            "--enable-auto-tool-choice --tool-call-parser minimax"
        )
        return {"vllm": command}, [
            *notes,
            "vLLM carries M1 from 0.9.2 to 0.23.0 (pip install 'vllm>=0.9.2,<=0.23.0'); earlier "
            "versions lose precision, later ones removed the model",
            _REMOTE_CODE,
        ]
    notes.append(_REMOTE_CODE)
    sglang_split, vllm_split = f"--tp-size {gpus.count}", f"--tensor-parallel-size {gpus.count}"
    if config.quantization_config is not None:
        block = config.quantization_config.weight_block_size[0]
        if config.intermediate_size // gpus.count % block:
            sglang_split += f" --ep-size {gpus.count}"
            vllm_split += " --enable-expert-parallel"
            notes.append(
                f"experts are spread whole over the GPUs: {config.intermediate_size} columns in "
                f"{gpus.count} parts are no whole blocks of {block}"
            )
        if gpus.accelerator.fp8_flops is None:
            notes.append(
                f"{gpus.accelerator.name} has no FP8 products: an engine must expand the weights "
                "as it multiplies, its native FP8 kernels fail there"
            )
    return {
        "sglang": f"python -m sglang.launch_server --model-path {checkpoint} {sglang_split} "
        "--tool-call-parser minimax-m2 --reasoning-parser minimax-append-think "
        f"--trust-remote-code --mem-fraction-static {USABLE['minimax_m2']:.2f}"
        + (f" --context-length {length}" if is_limited else ""),
        "vllm": f"SAFETENSORS_FAST_GPU=1 vllm serve {checkpoint} --trust-remote-code {vllm_split} "
        "--enable-auto-tool-choice --tool-call-parser minimax_m2 "
        "--reasoning-parser minimax_m2_append_think"
        + (f" --max-model-len {length}" if is_limited else ""),
    }, notes


def _too_few(config: Config, gpus: Gpus, rows: list[Reading]) -> str:
    """Why no launch is possible, and the smallest number of such GPUs with which one is."""
    least = min(row.weights.total for row in rows)
    needed = f"the engines need {least / 1e9:.0f} GB for the weights alone"
    for count in _NODE_SIZES:
        node = replace(gpus, count=count)
        if any(row.max_model_len for row in _on_gpus(rows, node, config, rows[0].context)):
            return f"{needed}, it takes {node} at least"
    return f"{needed}, it takes more than a node of {node}"


_REMOTE_CODE: Final = (
    "--trust-remote-code is in the makers' commands; it runs Python from the repository"
)


# A reinforcement learning run like the report's.

_REPORT_GPUS, _REPORT_DAYS, _REPORT_USD = 512, 21, 534_700
_REPORT_LENGTH = 40_000
"""Tokens of the generations over which two models are compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RLCost:
    """The report's run, 512 H800 for three weeks, with another model or on other GPUs."""

    gpus: str
    relative_flops: float
    """FLOPs of generating 40,000 tokens, against M1's."""
    gpu_hours: float
    days: float
    usd: float | None
    """At the report's price of an H800 hour; None for other GPUs."""
    usd_per_gpu_hour: float
    optimizer_bytes: int
    """Weights, gradients and AdamW's states in mixed precision: 16 bytes a parameter."""


def _rl_cost(config: Config, gpus: Gpus) -> RLCost:
    report_hours = _REPORT_GPUS * _REPORT_DAYS * 24
    price = _REPORT_USD / report_hours
    m1 = generation_cost(published_config("minimax-m1-80k")).cumulative(_REPORT_LENGTH)
    relative = generation_cost(config).cumulative(_REPORT_LENGTH) / m1
    h800 = ACCELERATORS["H800"]
    hours = report_hours * relative * h800.bf16_flops / gpus.accelerator.bf16_flops
    return RLCost(
        gpus=str(gpus),
        relative_flops=relative,
        gpu_hours=hours,
        days=hours / gpus.count / 24,
        usd=hours * price if gpus.accelerator == h800 else None,
        usd_per_gpu_hour=price,
        optimizer_bytes=16 * count_parameters(config).total,
    )


# The plan.


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
        forecasts = _on_gpus(rows, parse_gpus(gpus), config, context)
    elif ram is not None:
        hardware = f"{ram} read at {memory}" + (f", disk {disk}" if disk else "")
        forecasts = _on_machine(rows, ram, memory, disk)
    if gpus is not None and (card is None or card.source is None):
        checkpoint = name if card is None else card.hub
        launch, notes = _launch(config, checkpoint, parse_gpus(gpus), rows, max_context)
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
        rl=_rl_cost(config, parse_gpus(rl_gpus)),
        notes=tuple(notes),
    )


def _on_gpus(rows: Iterable[Reading], gpus: Gpus, config: Config, context: int) -> list[Forecast]:
    usable, flops = USABLE[config.model_type], prefill_flops(config, context)
    return [forecast_gpus(row, gpus, usable=usable, prompt_flops=flops) for row in rows]


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
            f"{_REPORT_LENGTH:,} tokens",
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
