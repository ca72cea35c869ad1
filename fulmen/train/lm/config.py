"""Config of a run of next-token training: what `fulmen train lm` reads from its file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fulmen.train.lm.balance import BalanceConfig
from fulmen.train.lm.mixture import shares_of
from fulmen.train.lm.ngrams import CheckConfig
from fulmen.train.lm.sources import TaskConfig
from fulmen.train.optimizer import OptimizerConfig
from fulmen.train.run_file import changed_fields
from fulmen.train.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StartConfig:
    """Model that a run begins with: exactly one of three."""

    config: dict[str, Any] = field(default_factory=dict)
    """Fields of a config.json: a new model with random weights. vocab_size may be left out."""
    checkpoint: str | None = None
    """Folder or name of a checkpoint, whose weights are trained further."""
    state: Path | None = None
    """State of another run, such as runs/x/states/step-00000300: weights, moments and cursors. The
    stages and the schedule begin at their start."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of weights and activations; masters, routers and the head are float32."""
    tokenizer: Path | None = None
    """Folder with tokenizer.json and tokenizer_config.json; none takes the checkpoint's."""

    def __post_init__(self) -> None:
        own = ("config", "checkpoint", "state")
        given = [name for name in own if getattr(self, name) not in (None, {})]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"config, checkpoint or state must be given, found {found}")
        if self.checkpoint == "":
            raise ValueError("checkpoint is empty, it must be a folder or a name")
        if self.config and self.tokenizer is None:
            raise ValueError(
                "tokenizer is missing, a new model needs a folder with tokenizer.json, which "
                "`fulmen train tokenizer` makes"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """Part of a run with its own mixture and its own length of context."""

    tokens: int
    """Tokens to read in this stage."""
    length: int
    """Longest sequence; text is cut to it, longer conversations are left out. The context of a
    checkpoint grows to it."""
    step_tokens: int = 8192
    """Tokens of a step of the optimizer, over all its micro-batches."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Weight of each task; empty weighs all alike."""
    rope_theta: float | None = None
    """Base of the rotation from this stage on, for longer contexts; none leaves it."""

    def __post_init__(self) -> None:
        if not 1 <= self.tokens < 2**62:
            raise ValueError(f"tokens is {self.tokens}, it must be 1 or more")
        if not 2 <= self.length < 2**31:
            raise ValueError(f"length is {self.length}, it must be 2 or more")
        if not self.length <= self.step_tokens < 2**31:
            raise ValueError(
                f"step_tokens is {self.step_tokens}, it must be at least length, {self.length}"
            )
        if self.rope_theta is not None and not self.rope_theta > 0:
            raise ValueError(f"rope_theta is {self.rope_theta}, it must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """Tests on held-out documents while a run goes on."""

    every: int = 200
    """Steps between probes; there is one at the end too."""
    documents: int = 50
    """Held-out documents of each task."""
    max_tokens: int = 256
    """Longest answer."""
    samples: int = 2
    """Answers of each task that go into the log."""

    def __post_init__(self) -> None:
        for name, low in (("every", 1), ("documents", 0), ("max_tokens", 1), ("samples", 0)):
            if not low <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be {low} or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchConfig:
    """Decays that branch from a constant trunk, to judge it."""

    every: int | None = None
    """Tokens of the trunk between branches, none in its warm-up; none makes no branches."""
    length: int = 100_000
    """Tokens of a branch, in which the rate falls."""

    def __post_init__(self) -> None:
        for name in ("every", "length"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**62:
                raise ValueError(f"{name} is {value}, it must be 1 or more")
        if "length" in changed_fields(self) and self.every is None:
            raise ValueError(
                f"length is {self.length}, it needs every, the tokens between branches"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LMConfig:
    """A run of next-token training."""

    out: Path
    """Folder of the run: metrics, states, the resolved file."""
    seed: int = 0
    """Seed of new weights, problems and orders."""
    model: StartConfig
    tasks: dict[str, TaskConfig]
    """Things to learn, by name."""
    stages: tuple[StageConfig, ...]
    """One after the other."""
    floor: float = 0.02
    """Least share of tokens of every task in every stage: what a stage leaves out is forgotten."""
    held_out: float = 0.02
    """Share of documents that are kept for probes, by the hash of their text."""
    micro_batch_tokens: int = 16384
    """Tokens of a forward and backward pass, or one longer sequence; it changes memory, not the
    result."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    branches: BranchConfig = field(default_factory=BranchConfig)
    check: CheckConfig = field(default_factory=CheckConfig)
    save_every: int = 200
    """Steps between states; there is one at the end and one at an interrupt too."""
    keep: int = 2
    """States that are kept, the newest."""
    tensorboard: bool | None = None
    """Write for TensorBoard; none does if it is installed."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks is empty, at least one is needed")
        if not self.stages:
            raise ValueError("stages is empty, at least one is needed")
        for number, stage in enumerate(self.stages):
            try:
                shares_of(stage.mixture, tuple(self.tasks), self.floor)
            except ValueError as error:
                place = "" if str(error).startswith("floor") else f"stages.{number}.mixture."
                raise ValueError(f"{place}{error}") from None
        if self.branches.every is not None and self.schedule.decay_start is not None:
            raise ValueError(
                f"branches.every is {self.branches.every}, decays branch from a constant rate: "
                f"leave out schedule.decay_start, which is {self.schedule.decay_start}, and "
                "decay_length"
            )
        if self.branches.every is None and self.schedule.decay_start is None:
            for name in ("decay", "floor"):
                if name in changed_fields(self.schedule):
                    raise ValueError(
                        f"schedule.{name} is {getattr(self.schedule, name)}, it needs a decay: "
                        "schedule.decay_start or branches.every"
                    )
        if not 0 <= self.held_out <= 0.5:
            raise ValueError(f"held_out is {self.held_out}, it must be from 0 to 0.5")
        for name in ("micro_batch_tokens", "save_every", "keep"):
            if not 1 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be 1 or more")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}, it must be 0 or more")

    @property
    def num_tokens(self) -> int:
        """Tokens of all stages."""
        return sum(stage.tokens for stage in self.stages)

    def shares(self, stage: int) -> Mapping[str, float]:
        """Return the share of each task in a stage."""
        return shares_of(self.stages[stage].mixture, tuple(self.tasks), self.floor)


def branch_of(config: LMConfig, state: Path, stage: int) -> LMConfig:
    """Return the run that branches from a state of a trunk: its stage's mixture, a falling rate."""
    length = config.branches.length
    own = config.stages[stage]
    steps = -(-length // own.step_tokens)
    falls = length if config.schedule.unit == "tokens" else steps
    return replace(
        config,
        out=config.out / "branches" / state.name,
        model=replace(config.model, config={}, checkpoint=None, state=state),
        stages=(replace(own, tokens=length),),
        schedule=replace(config.schedule, warmup=0, decay_start=0, decay_length=falls),
        branches=BranchConfig(),
        probe=replace(config.probe, every=2**31 - 1),
        save_every=max(steps, 1),
        keep=1,
    )
