"""State of a run on disk: what the next step depends on, all of it or nothing.

    states/step-00000300/model/                the model, a checkpoint that `load_model` opens
                         optimizer.safetensors masters and moments
                         state.json            cursors, counters, seeds: whatever the caller gives

A state is written into a folder aside, each file synced, and becomes visible by one rename. So a
process that is killed, or a disk that is full, leaves the state before it as it was. The newest few
are kept.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fulmen.checkpoints import load_model, read_config, save_model
from fulmen.files import full_reason, read_json, write_text
from fulmen.models import Config, Model, SparseMoE
from fulmen.train.optimizer import Optimizer

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

STATES: Final = "states"
"""Folder of a run that holds its states"""
_NAME: Final = re.compile(r"step-(\d{8,18})")
_REPLACED: Final = ".replaced"
"""End of the name of a state while one of the same step takes its place"""
_MODEL, _OPTIMIZER, _VALUES = "model", "optimizer.safetensors", "state.json"


def save_state(
    run: Path,
    step: int,
    *,
    model: Model,
    optimizer: Optimizer,
    values: Mapping[str, object],
    keep: int | None = 2,
    beside: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the state after a step into the folder of a run; return the state's own folder.

    values  JSON values: cursors, counters, random states
    keep    number of states that stay, the newest; None keeps all
    beside  files written into the model's folder by name, such as tokenizer.json

    Only who holds the `run_lock` may. An OSError names the folder of the run; then nothing new is
    in it.
    """
    folder = run / STATES
    target = folder / f"step-{step:08}"
    aside = folder / f".{target.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_strays(folder, parts_only=True)
        aside.mkdir()
        save_model(model, aside / _MODEL)
        for name, data in (beside or {}).items():
            (aside / _MODEL / name).write_bytes(data)
        _save_tensors(optimizer.state(), aside / _OPTIMIZER)
        write_text(aside / _VALUES, json.dumps({"step": step, **values}, indent=1) + "\n")
        _sync(aside)
        if target.exists():  # of a run that went back and came here again
            target.rename(folder / f".{target.name}{_REPLACED}")
        aside.rename(target)
        _sync_entry(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        _put_back(folder)
        if full_reason(error) is None:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error
    _remove_strays(folder)
    if keep is not None:
        for old in list_states(run)[:-keep]:
            drop_state(old)
    return target


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder, which is made if it is missing, and put a state
    back that a killed save was replacing. Raises ValueError where another process has it."""
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    descriptor = _locked(run)
    try:
        _put_back(run / STATES)
        yield
    finally:
        with suppress(OSError):  # only where nothing was written
            for folder in made or [run]:
                folder.rmdir()
        if descriptor is not None:
            os.close(descriptor)


def _locked(run: Path) -> int | None:
    """Return the descriptor that holds a folder, which is made; None where there are no locks."""
    while True:
        run.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return None
        try:
            descriptor = os.open(run, os.O_RDONLY)
        except FileNotFoundError:  # deleted meanwhile by who held it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if run.exists() and os.path.samestat(os.fstat(descriptor), run.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise ValueError(
                f"{run} is in use by another process, wait for it or give out another folder"
            ) from None
        os.close(descriptor)  # of a folder that was deleted meanwhile


def _put_back(folder: Path) -> None:
    """Give states their names again whose save was killed between its two renames. Only who holds
    the run may: another's save may stand there just now."""
    for old in folder.glob(f".step-*{_REPLACED}"):
        target = folder / old.name.removeprefix(".").removesuffix(_REPLACED)
        if not target.exists():
            old.rename(target)


def list_states(run: Path) -> list[Path]:
    """Return the states of a run, oldest first."""
    folder = run / STATES
    if not folder.is_dir():
        return []
    return sorted(filter(lambda each: _NAME.fullmatch(each.name), folder.iterdir()), key=step_of)


def latest_state(run: Path) -> Path | None:
    """Return the newest state of a run; None if it has none."""
    return next(reversed(list_states(run)), None)


def checkpoint_of(folder: Path) -> Path:
    """Return the checkpoint in a folder: the newest model of a run, or the folder itself."""
    state = None if (folder / "config.json").exists() else latest_state(folder)
    return folder if state is None else model_folder(state)


def step_of(state: Path) -> int:
    """Return the step after which a state was written."""
    found = _NAME.fullmatch(state.name)
    if found is None:
        raise ValueError(f"{state} is no state of a run, its name must be like step-00000300")
    return int(found[1])


def drop_state(state: Path) -> None:
    """Delete a state; it vanishes at once, so that no half of it is ever taken for one."""
    aside = state.with_name(f".{state.name}.old.part")
    state.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def read_values(state: Path) -> dict[str, object]:
    """Read the JSON values of a state."""
    return read_json(state / _VALUES)


def model_folder(state: Path) -> Path:
    """Return the folder of a state that is a checkpoint."""
    return state / _MODEL


def load_state(state: Path, *, model: Model, optimizer: Optimizer | None) -> dict[str, object]:
    """Put a state into a model, and into its optimizer if one is given; return the JSON values.

    Raises ValueError, and changes neither, for the state of a model of another shape.
    """
    values = read_values(state)
    check_same_shape(model_folder(state), model.config)
    if optimizer is None:
        load_weights(model_folder(state), model)
        return values
    tensors = _load_tensors(state / _OPTIMIZER)
    optimizer.check_state(tensors)
    load_weights(model_folder(state), model)
    optimizer.load_state(tensors)  # the masters know more than rounded weights
    return values


def load_weights(folder: Path, model: Model) -> None:
    """Put the weights of a checkpoint into a plain model of the same shape, in place."""
    check_same_shape(folder, model.config)
    dtype = model.model.embed_tokens.weight.dtype
    model.load_state_dict(load_model(folder, dtype=dtype, trainable=True).state_dict())


def check_same_shape(folder: Path, config: Config) -> None:
    """Raise ValueError unless a checkpoint's config is this one, but for what changes no weight."""
    found = read_config(folder)
    if type(found) is not type(config):
        raise ValueError(
            f"{folder} is a {found.model_type} checkpoint, the run's model is {config.model_type}"
        )
    for name in (field.name for field in fields(found)):
        stored, own = getattr(found, name), getattr(config, name)
        if name not in _MAY_DIFFER and stored != own:
            raise ValueError(
                f"{folder} is of another shape: its {name} is {_shown(stored)}, the run's model "
                f"has {_shown(own)}"
            )


def take_free_values(model: Model, config: Config) -> None:
    """Give a model those values of a config of its shape that a run may change as it goes on."""
    free = {name: getattr(config, name) for name in _FREE}
    model.config = replace(model.config, **free)
    for layer in model.modules():
        if isinstance(layer, SparseMoE):
            layer.router_jitter_noise = config.router_jitter_noise


_FREE: Final = (
    "max_position_embeddings",
    "rope_theta",
    "router_aux_loss_coef",
    "router_jitter_noise",
)
"""Fields of a config that the weights do not depend on, and that a run may change"""
_MAY_DIFFER: Final = frozenset({"torch_dtype", "quantization_config", *_FREE})
"""Fields of a config that the weights do not depend on"""


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(own, file)
    except SafetensorError as error:  # its text alone holds the system's error
        reason = full_reason(error)
        if reason is None:
            raise
        number = errno.EFBIG if "too large" in reason else errno.ENOSPC
        raise OSError(number, reason, str(file)) from error


def _load_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(f"{file} is missing, the state is not whole")
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    return tensors


def _sync(folder: Path) -> None:
    """Make all files below a folder durable, and their names."""
    for path in _below(folder):
        _sync_entry(path)


def _below(folder: Path) -> Iterable[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _below(path)
        else:
            yield path
    yield folder


def _sync_entry(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_strays(folder: Path, *, parts_only: bool = False) -> None:
    """Delete what an interrupted save or deletion left.

    parts_only  leave states that were replaced: the ones in their places may not be there yet
    """
    replaced = () if parts_only else folder.glob(f".step-*{_REPLACED}")
    for path in (*folder.glob(".step-*.part"), *replaced):
        shutil.rmtree(path, ignore_errors=True)
