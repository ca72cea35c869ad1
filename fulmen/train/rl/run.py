"""A run of reinforcement learning, from its file: what is trained, on what, how, and where.

    runs/x.toml -> RLRun -> model, environments, rollouts, curriculum, optimizer -> Trainer

The file holds the fields of the dataclasses of this room, each in the table of its name; what it
leaves out has its default. The run's folder gets the resolved file, the states and metrics.jsonl,
and a run whose folder has a state goes on from it.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from fulmen.chat import Tokenizer, load_format
from fulmen.checkpoints import load_model
from fulmen.engine import EngineConfig
from fulmen.envs import load_environment
from fulmen.files import write_text
from fulmen.models import DTYPES, Model, new_model
from fulmen.train.optimizer import Optimizer, OptimizerConfig
from fulmen.train.rl.advantages import AdvantageConfig
from fulmen.train.rl.batch import BatchConfig
from fulmen.train.rl.curriculum import Curriculum, CurriculumConfig, SourceConfig
from fulmen.train.rl.fork import Fork, fork_config, warm_start
from fulmen.train.rl.held_out import HeldOut
from fulmen.train.rl.local_rollouts import LocalRollouts
from fulmen.train.rl.objective import ObjectiveConfig
from fulmen.train.rl.playing import LimitsConfig
from fulmen.train.rl.probe import Probe, ProbeConfig
from fulmen.train.rl.rollout import Rollouts, SamplingConfig, derive_seed
from fulmen.train.rl.server_rollouts import ServerRollouts
from fulmen.train.rl.tasks import AnyEnvironment, TokenEnvironment
from fulmen.train.rl.trainer import Trainer, TrainerConfig
from fulmen.train.rl.watcher import RLWatcher
from fulmen.train.rl.windows import LengthWindow, WindowConfig
from fulmen.train.run_file import differences, revision, to_toml
from fulmen.train.schedule import ScheduleConfig
from fulmen.train.state import checkpoint_of, latest_state, model_folder, run_lock

RESOLVED: Final = "run.toml"
"""File of a run's folder that holds every value of the run"""
_MAY_CHANGE: Final = frozenset(
    {"folder", *(f"trainer.{name}" for name in ("num_steps", "max_seconds", "save_every", "keep"))}
)
"""Keys that may have other values when a run goes on"""
_HELD_OUT: Final = " (held out)"
"""End of the name of an environment's held-out tasks"""
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSizes:
    """Sizes of the engine that draws."""

    max_num_seqs: int = 256
    """Most answers that are drawn together"""
    max_num_batched_tokens: int = 4096
    """Most tokens of one forward pass"""
    max_model_len: int | None = None
    """Most tokens of a prompt with its answer; none: the model's context"""
    kv_cache_bytes: int = 2 * 2**30
    """Memory for keys and values"""

    def config(self) -> EngineConfig:
        """Return the engine's config; nobody watches single tokens."""
        return EngineConfig(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            kv_cache_bytes=self.kv_cache_bytes,
            max_token_gap_seconds=None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """A server that draws in place of the engine in this process."""

    url: str
    key: str | None = None
    connect_seconds: float = 60.0
    """Longest wait until it answers at all"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RLRun:
    """Everything that a run depends on."""

    folder: Path
    """Folder of the run: states, metrics, the resolved file"""
    model: Path
    """Checkpoint to begin with, or the folder of a run, whose newest model it is then; `fork` is
    the warm start of the fork task, made on the spot"""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of weights and activations; the optimizer's masters are float32"""
    trainer: TrainerConfig
    sources: tuple[SourceConfig, ...]
    """Tasks that are trained on; their levels are names of environments"""
    claimed: tuple[str, ...] = ()
    """Environments that the probe asks beside those in training: all that must not get worse"""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    advantages: AdvantageConfig = field(default_factory=AdvantageConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-4))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(unit="steps"))
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    window: WindowConfig | None = None
    """Stages of the length limit, in place of sampling.max_tokens; none is one stage"""
    probe: ProbeConfig | None = field(default_factory=ProbeConfig)
    engine: EngineSizes = field(default_factory=EngineSizes)
    server: ServerConfig | None = None
    """None draws in this process, which alone is exact"""

    def __post_init__(self) -> None:
        """Raise ValueError for a run that no batch can be made of."""
        if not self.sources:
            raise ValueError("sources is empty, a run needs at least one [[sources]] with levels")
        needed = self.batch.num_minibatches * self.batch.min_groups
        if needed > self.trainer.num_groups:
            raise ValueError(
                f"batch.num_minibatches ({self.batch.num_minibatches}) times batch.min_groups "
                f"({self.batch.min_groups}) is {needed}, trainer.num_groups is "
                f"{self.trainer.num_groups}: no batch has groups for that many updates"
            )
        try:
            self.advantages.estimator_of(self.objective.algorithm)
        except ValueError as error:
            raise ValueError(f"advantages.{error}, see objective.algorithm") from None
        if self.server is not None and self.sampling.exact:
            raise ValueError(
                f"{self.server.url} computes in its own way, so a run that samples there is not "
                "exact: set sampling.exact to false"
            )

    @property
    def environments(self) -> tuple[str, ...]:
        """Names of the environments in training."""
        return tuple(level for source in self.sources for level in source.levels)


@contextmanager
def open_run(
    run: RLRun, *, model: Model | None = None, watcher: RLWatcher | None = None
) -> Iterator[Trainer]:
    """Yield the trainer of a run, which goes on where its folder has a state.

    model  in training, in place of loading run.model

    Raises ValueError, before anything is written, for what cannot be; PeerError for a server that
    does not answer.
    """
    run = replace(run, model=checkpoint_of(run.model))
    seed = run.trainer.seed
    watcher = watcher or RLWatcher()
    known = {name: open_environment(name, seed=seed) for name in run.environments}
    for name, environment in known.items():
        if getattr(environment, "for_evaluation", False):
            raise ValueError(f"{name} is for evaluation only, it cannot be trained on")
    probed: dict[str, AnyEnvironment] = {}
    if run.probe is not None:
        probed = {
            name: open_environment(name, seed=derive_seed(seed, "held out"))
            for name in dict.fromkeys((*run.environments, *run.claimed))
        }
    everything = {**known, **{f"{name}{_HELD_OUT}": one for name, one in probed.items()}}
    with ExitStack() as stack:
        stack.enter_context(run_lock(run.folder))
        _check_resolved(run)
        held_out = HeldOut(known, probed, 0 if run.probe is None else run.probe.num_tasks)
        curriculum = Curriculum(
            run.sources,
            run.curriculum,
            num_tasks={name: one.num_tasks for name, one in known.items()},
            seed=seed,
            is_held_out=held_out.has,
            fingerprints=held_out.fingerprints,
        )
        model = _first_model(run, watcher) if model is None else model
        rollouts = _open_rollouts(run, model, everything)
        stack.callback(rollouts.close)
        trainer = Trainer(
            model,
            rollouts,
            curriculum,
            run.trainer,
            folder=run.folder,
            optimizer=Optimizer(model, run.optimizer),
            sampling=run.sampling,
            objective=run.objective,
            advantages=run.advantages,
            batch=run.batch,
            schedule=run.schedule,
            window=None if run.window is None else LengthWindow(run.window),
            probe=None
            if run.probe is None
            else Probe(
                {f"{name}{_HELD_OUT}": own for name, own in held_out.indices.items()},
                run.probe,
                seed=derive_seed(seed, "probe"),
            ),
            watcher=watcher,
            beside=[file for name in _TOKENIZER_FILES if (file := run.model / name).is_file()],
        )
        stack.callback(trainer.close)
        watcher.said(run.objective.explain())
        write_text(run.folder / RESOLVED, f"# {revision()}\n{to_toml(_without_key(run))}")
        yield trainer


def open_environment(name: str, *, seed: int) -> AnyEnvironment:
    """Return an environment by name: `fork`, or any that `fulmen.envs` knows."""
    return Fork(seed) if name == "fork" else load_environment(name, seed=seed)


def _open_rollouts(
    run: RLRun, model: Model, environments: Mapping[str, AnyEnvironment]
) -> Rollouts:
    if run.server is not None:
        return ServerRollouts(
            str(run.model),
            run.server.url,
            environments,
            run.sampling,
            run.limits,
            folder=run.folder / "published",
            key=run.server.key,
            connect_seconds=run.server.connect_seconds,
        )
    speaks = not all(isinstance(one, TokenEnvironment) for one in environments.values())
    return LocalRollouts(
        model,
        environments,
        run.sampling,
        run.limits,
        engine_config=run.engine.config(),
        tokenizer=Tokenizer.from_folder(run.model) if speaks else None,
        format=load_format(run.model) if speaks else None,
    )


def _first_model(run: RLRun, watcher: RLWatcher) -> Model:
    """Return the model that a run begins with, or its last one."""
    dtype = DTYPES[run.dtype]
    if (state := latest_state(run.folder)) is not None:
        return load_model(model_folder(state), dtype=dtype, trainable=True)
    if run.model == Path("fork"):
        watcher.said("teaching a new model both ways of the fork task")
        model = new_model(fork_config(dtype), dtype=dtype, seed=run.trainer.seed)
        warm_start(model, seed=run.trainer.seed)
        return model
    return load_model(run.model, dtype=dtype, trainable=True)


def _check_resolved(run: RLRun) -> None:
    """Raise ValueError where the folder holds the state of a run with other values."""
    path = run.folder / RESOLVED
    if latest_state(run.folder) is None or not path.is_file():
        return
    try:
        found = differences(path.read_text("utf-8"), to_toml(_without_key(run)))
    except ValueError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    if changed := [key for key in found if key not in _MAY_CHANGE]:
        raise ValueError(
            f"{run.folder} holds the state of a run with other values of "
            f"{', '.join(changed[:5])}: go on with its own, see {path}, or choose another folder"
        )


def _without_key(run: RLRun) -> RLRun:
    return run if run.server is None else replace(run, server=replace(run.server, key=None))
