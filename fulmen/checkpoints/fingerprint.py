"""A fingerprint of the weights in a folder, made without reading all of them."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Final

from fulmen.checkpoints.checkpoint import Checkpoint

_BLOCK: Final = 64 * 2**10
_BLOCKS: Final = 64
_TEXTS: Final = ("config.json", "tokenizer.json")


def fingerprint(path: Path, *, ignore_config_fields: Collection[str] = ()) -> str:
    """Return a hash over config, tokenizer, and size and some sixty blocks of every weights file.

    The blocks are spread over the whole file, so any further training changes the hash; copying
    does not.

    Raises ValueError for a folder that is no checkpoint.
    """
    checkpoint = Checkpoint.open(path, ignore_config_fields=ignore_config_fields)
    folder = path if path.is_dir() else path.parent
    digest = hashlib.sha256()
    for name in _TEXTS:
        file = folder / name
        digest.update(f"{name} ".encode())
        if file.is_file():
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    for file in sorted({stored.file for stored in checkpoint.stored.values()}):
        size = file.stat().st_size
        digest.update(f"{size} ".encode())
        with file.open("rb") as content:
            for block in range(_BLOCKS):
                content.seek(max(0, size - _BLOCK) * block // max(1, _BLOCKS - 1))
                digest.update(content.read(_BLOCK))
    return digest.hexdigest()
