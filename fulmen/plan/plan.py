"""A plan: everything about running one model, computed before anything is downloaded.

It follows from a config.json and from a line about the hardware:

    sizes and FLOPs           models/flops.py
    speed at each precision   forecast.py
    what runs on a machine    answer.py
    the command to serve it   launch.py
    reinforcement learning    rl_cost.py
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from fulmen.catalog import (
    Card,
    context_of,
    find_config,
    get_card,
    local_path,
    published_config,
)
from fulmen.checkpoints import gguf
from fulmen.models import (
    Config,
    GenerationCost,
    checkpoint_bytes,
    count_parameters,
    count_tensors,
    generation_cost,
    prefill_flops,
)
from fulmen.plan.answer import TYPICAL_DISK, Way, ways_in_memory
from fulmen.plan.figure1 import as_drawn
from fulmen.plan.forecast import (
    Forecast,
    forecast_machine,
    on_gpus,
    readings,
)
from fulmen.plan.hardware import parse_gpus
from fulmen.plan.launch import Launch, launch_commands, no_launch, served_precisions
from fulmen.plan.rl_cost import RLCost, rl_cost
from fulmen.units import parse_bytes, parse_rate

TYPICAL_MEMORY: Final = "40GB/s"
"""Read speed of two channels of DDR4 or DDR5, for a forecast where none is named"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Numbers about running one model; each becomes a field of the JSON output."""

    name: str
    model_type: str
    total_parameters: int
    active_parameters: int
    """Weights that work on one token, without embedding and head, as the reports count."""
    active_with_head: int
    active_with_head_and_embedding: int
    num_tensors: int
    checkpoint_bytes: int
    weight_bytes: dict[str, int]
    """Bytes of all weights at each precision."""
    kv_bytes_per_token: int
    kv_formula: str
    state_bytes: int
    """Bytes of the lightning states of one sequence of any length."""
    state_formula: str
    max_context: int
    """Context that the makers state, else max_position_embeddings."""
    context: int
    """Tokens of the sequence that the forecasts assume."""
    flops: GenerationCost
    """Cost of generating, from first principles."""
    flops_as_drawn: GenerationCost | None
    """Cost as the report's figure counts it; None for a model that the figure does not show."""
    prefill_flops: float
    """FLOPs of a prompt of `context` tokens."""
    hardware: str | None
    is_on_gpus: bool
    """True if `hardware` names GPUs; False for one machine without GPUs."""
    forecasts: tuple[Forecast, ...]
    ways: tuple[Way, ...]
    """Ways to run the model in the memory of one machine; none where no machine is named."""
    ram: str | None
    """Memory of a machine without GPUs, as it was named; so are the next two."""
    memory: str
    """Read speed of its memory."""
    memory_source: Literal["given", "measured here", "assumed"]
    """Origin of that speed."""
    disk: str | None
    """Read speed of its disk."""
    launch: dict[str, str]
    """Commands that serve the model on GPUs, by engine."""
    launch_precision: str | None
    """Precision that the commands serve; None without a command."""
    launch_max_model_len: int
    """Tokens that the commands allow a sequence; 0 without a command."""
    rl: RLCost
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"fits": self.fits, **asdict(self)}

    @property
    def fits(self) -> bool | None:
        """True if the model runs on the hardware today, on GPUs by a command that allows the
        planned length; None where no hardware is named."""
        if self.hardware is None:
            return None
        if self.is_on_gpus:
            return bool(self.launch) and self.launch_max_model_len >= self.context
        return any(way.fits and way.commands for way in self.ways)


def make_plan(
    name: str,
    *,
    gpus: str | None = None,
    ram: str | None = None,
    disk: str | None = None,
    memory: str | None = None,
    measured_memory: str | None = None,
    context: int | None = None,
    rl_gpus: str = "512xH800",
    ignore_config_fields: Collection[str] = (),
) -> Plan:
    """Plan for a model on some hardware, from its config alone.

    name     a catalog name, a hub id in the catalog, or a local folder, config.json or GGUF
    gpus     GPUs to serve on, such as 8xH800
    ram      memory of one machine without GPUs, such as 24GiB
    disk     read speed of that machine's disk, such as 3GB/s; experts that exceed memory stay on it
    memory   read speed of that machine's memory
    measured_memory  that speed as it was measured on this machine, for a plan where none is named;
                     40GB/s is assumed without it
    context  tokens to plan for; by default 131,072, on a machine without GPUs 8,192
    rl_gpus  GPUs for the cost of reinforcement learning
    ignore_config_fields  names of fields of a local config.json that count as absent
    """
    if gpus is not None and ram is not None:
        raise ValueError("--gpus and --ram are two plans, ask for one of them")
    if disk is not None and ram is None:
        raise ValueError("--disk is about a machine without GPUs and needs --ram")
    if memory is not None and ram is None:
        raise ValueError("--memory is about a machine without GPUs and needs --ram")
    source: Literal["given", "measured here", "assumed"] = "given"
    if memory is None:
        source = "assumed" if measured_memory is None else "measured here"
        memory = measured_memory or TYPICAL_MEMORY
    memory_rate, disk_rate = parse_rate(memory), None if disk is None else parse_rate(disk)
    config = find_config(name, ignore_config_fields=ignore_config_fields)
    card = None if local_path(name) is not None else get_card(name)
    max_context = config.max_position_embeddings if card is None else context_of(card)
    if context is None:
        context = min(131_072 if ram is None else 8_192, max_context)
    if not 1 <= context <= config.max_position_embeddings:
        raise ValueError(
            f"--context {context} must be between 1 and the model's max_position_embeddings, "
            f"{config.max_position_embeddings}"
        )
    counts = count_parameters(config)
    kv_bytes, kv_formula, state_bytes, state_formula = _sequence(config)
    rows = [
        row
        for row in readings(config, kv_bytes=kv_bytes, state_bytes=state_bytes, context=context)
        # A mode of engines on GPUs, for M1.
        if row.precision != "int8-experts"
        or (ram is None and row.precision in served_precisions(config))
    ]
    hardware: str | None = None
    forecasts: list[Forecast] = []
    launch = Launch(commands={}, precision=None, max_model_len=0, notes=[])
    notes: list[str] = []
    if card is not None and not card.is_commercial:
        notes.append(f"its licence is {card.text['en'].licence}")
    if gpus is not None:
        servers = parse_gpus(gpus)
        hardware = str(servers)
        forecasts = on_gpus(rows, servers, config, context)
        if _is_gguf(name, card):
            launch = no_launch("there are commands for M1 and M2 alone, this is a GGUF file")
        else:
            checkpoint = name if card is None or card.hub is None else card.hub
            launch = launch_commands(config, checkpoint, servers, rows, max_context)
        notes += launch.notes
    ways: tuple[Way, ...] = ()
    if ram is not None:
        hardware = f"{ram} read at {memory}" + (f", disk {disk}" if disk else "")
        ways = ways_in_memory(
            config,
            name,
            rows,
            ram_bytes=parse_bytes(ram),
            memory=memory_rate,
            disk=disk_rate or parse_rate(TYPICAL_DISK),
        )
        forecasts = [
            forecast_machine(row, ram_bytes=parse_bytes(ram), memory=memory_rate, disk=disk_rate)
            for row in rows
        ]
        if disk is not None and all(way.fits for way in ways):
            notes.append("--disk has no effect, all weights fit in memory")
        elif disk is not None and not any(way.from_disk for way in ways):
            notes.append("--disk has no effect, what must be in memory does not fit there")
    return Plan(
        name=name if card is None else card.title,
        model_type=config.model_type,
        total_parameters=counts.total,
        active_parameters=counts.active,
        active_with_head=counts.active + (counts.head or counts.embedding),
        active_with_head_and_embedding=counts.active + counts.head + counts.embedding,
        num_tensors=count_tensors(config),
        checkpoint_bytes=checkpoint_bytes(config),
        weight_bytes={row.precision: row.weights.total for row in rows},
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
        ways=ways,
        ram=ram,
        memory=memory,
        memory_source=source,
        disk=disk,
        launch=launch.commands,
        launch_precision=launch.precision,
        launch_max_model_len=launch.max_model_len,
        rl=rl_cost(config, parse_gpus(rl_gpus)),
        notes=tuple(notes),
    )


def _is_gguf(name: str, card: Card | None) -> bool:
    """Return True for a model whose weights are a GGUF, which the launch commands are not for."""
    path = local_path(name)
    if path is None:
        return card is not None and card.source is not None
    return path.suffix == ".gguf" or (path / gguf.WEIGHTS_NAME).exists()


def _sequence(config: Config) -> tuple[int, str, int, str]:
    """Return cache bytes of a token and state bytes of a sequence, each with its formula."""
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
