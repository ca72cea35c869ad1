"""Which weights a folder holds, told without reading all of them."""

import hashlib
from pathlib import Path
from typing import Final

from fulmen.checkpoints.checkpoint import Checkpoint

_BLOCK: Final = 64 * 2**10
_BLOCKS: Final = 64
_TEXTS: Final = ("config.json", "tokenizer.json")


def fingerprint(path: Path) -> str:
    """A hash over config, tokenizer, and of every weights file its size, its beginning and some
    sixty blocks spread over it: training any further changes it, copying does not.

    Raises ValueError for a folder that is no checkpoint.
    """
    checkpoint = Checkpoint.open(path)
    folder = path if path.is_dir() else path.parent
    digest = hashlib.sha256()
    for name in _TEXTS:
        file = folder / name
        digest.update(f"{name} ".encode())
        if file.is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    for file in sorted({stored.file for stored in checkpoint.stored.values()}):
        size = file.stat().st_size
        digest.update(f"{size} ".encode())
        with file.open("rb") as content:
            for block in range(_BLOCKS):
                content.seek(max(0, size - _BLOCK) * block // max(1, _BLOCKS - 1))
                digest.update(content.read(_BLOCK))
    return digest.hexdigest()
