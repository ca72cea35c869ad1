"""What the two models are: their mathematics, their checkpoints, their cards and their costs."""

from fulmen.models.checkpoint import (
    Checkpoint,
    Config,
    Model,
    config_from_dict,
    load_model,
    new_model,
    read_config,
    save_model,
)
from fulmen.models.layers import Trace
from fulmen.models.m1 import M1, M1Config, router_aux_loss
from fulmen.models.m2 import M2, M2Config
from fulmen.models.packed import Cache, Packed

__all__ = [
    "M1",
    "M2",
    "Cache",
    "Checkpoint",
    "Config",
    "M1Config",
    "M2Config",
    "Model",
    "Packed",
    "Trace",
    "config_from_dict",
    "load_model",
    "new_model",
    "read_config",
    "router_aux_loss",
    "save_model",
]
