"""A model out to safetensors: a save that is killed leaves the old checkpoint whole."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fulmen.checkpoints.checkpoint import CONFIG, INDEX, SINGLE
from fulmen.files import read_json, replacing_path, write_text
from fulmen.models import CausalLM, Experts, Linear, M1Config, M2Config

# The official name of a shard, or with a number before it the name of a later save's.
_SHARD = re.compile(r"model-(\d+-)?\d{5}-of-\d{5}\.safetensors")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def save_model(
    model: CausalLM[M1Config] | CausalLM[M2Config],
    folder: Path | str,
    *,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write config.json and safetensors, official names; `load_model` reads back the same values.

    Weights keep the dtype they have; router and choice bias are float32. The head, float32 in
    memory, is stored in the dtype of the rest where that loses nothing. Every file is written
    aside, synced and renamed. A checkpoint that is in the folder already stays as it is until the
    new one is whole: new shards get names that its index does not use, then the index is replaced
    (or, for a single file, deleted), and only then are its shards deleted.
    """
    if any(m.is_packed for m in model.modules() if isinstance(m, Linear | Experts)):
        raise ValueError(
            "this model was loaded for inference, its weights are packed; load it with "
            "trainable=True to save it"
        )
    folder = Path(folder)
    dtype = model.model.embed_tokens.weight.dtype
    values = model.config.to_dict()
    values["torch_dtype"] = str(dtype).removeprefix("torch.")
    values.pop("quantization_config", None)
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    head = tensors.get("lm_head.weight")
    if head is not None and torch.equal(head.to(dtype).to(head.dtype), head):
        tensors["lm_head.weight"] = head.to(dtype)
    shards = _shards(tensors, max_shard_bytes)
    before = _weight_files(folder)
    if len(shards) == 1:
        files = [SINGLE]
        with replacing_path(folder / SINGLE) as temporary:
            _write_shard(tensors, temporary)
            _retire_config(folder, values)
        (folder / INDEX).unlink(missing_ok=True)
    else:
        files = _shard_names(len(shards), before)
        for file, names in zip(files, shards, strict=True):
            with replacing_path(folder / file) as temporary:
                _write_shard({name: tensors[name] for name in names}, temporary)
        _retire_config(folder, values)
        total = sum(tensor.nbytes for tensor in tensors.values())
        weight_map = {
            name: file for file, names in zip(files, shards, strict=True) for name in names
        }
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / CONFIG, values)
    for file in before.difference(files):
        (folder / file).unlink(missing_ok=True)


def _write_shard(tensors: Mapping[str, Tensor], file: Path) -> None:
    shard = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(shard, file, metadata={"format": "pt"})
    except SafetensorError as error:  # its text alone holds the system's error
        number = _OS_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def _weight_files(folder: Path) -> set[str]:
    """Return the safetensors of the checkpoint in a folder, and those of an interrupted save."""
    files = {file.name for file in folder.glob("*.safetensors") if _SHARD.fullmatch(file.name)}
    if (folder / SINGLE).exists():
        files.add(SINGLE)
    try:
        weight_map = read_json(folder / INDEX).get("weight_map")
    except ValueError:  # no index, or none that could be loaded
        return files
    if isinstance(weight_map, dict):
        shards = (Path(str(shard)) for shard in weight_map.values())
        files.update(s.name for s in shards if s.name == str(s) and s.suffix == ".safetensors")
    return files


def _shard_names(count: int, taken: set[str]) -> list[str]:
    """Return the official names, or with the first number before them that makes them new."""
    save, prefix = 1, ""
    while True:
        names = [f"model-{prefix}{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        if taken.isdisjoint(names):
            return names
        save += 1
        prefix = f"{save}-"


def _retire_config(folder: Path, values: Mapping[str, object]) -> None:
    """Delete a config.json that is not `values`, before the weights it belongs to are replaced.

    Should the save end here, the folder has no config, which is an error, rather than one model's
    weights under another's config.
    """
    try:
        is_same = read_json(folder / CONFIG) == values
    except ValueError:
        is_same = False
    if not is_same:
        (folder / CONFIG).unlink(missing_ok=True)


def _shards(tensors: Mapping[str, Tensor], max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _write_json(file: Path, values: Mapping[str, object]) -> None:
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
