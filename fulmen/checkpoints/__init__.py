"""Weights on disk: safetensors and GGUF, in and out."""

from fulmen.checkpoints.checkpoint import CONFIG, INDEX, PICKLES, SINGLE, Checkpoint, read_config
from fulmen.checkpoints.fingerprint import fingerprint
from fulmen.checkpoints.header import ALIGNMENT, SAFETENSORS_DTYPES, read_header, read_metadata
from fulmen.checkpoints.load import assign_matrix, load_model, stream_model
from fulmen.checkpoints.save import save_model

__all__ = [
    "ALIGNMENT",
    "CONFIG",
    "INDEX",
    "PICKLES",
    "SAFETENSORS_DTYPES",
    "SINGLE",
    "Checkpoint",
    "assign_matrix",
    "fingerprint",
    "load_model",
    "read_config",
    "read_header",
    "read_metadata",
    "save_model",
    "stream_model",
]
