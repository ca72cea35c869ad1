"""What the two models are: their mathematics, their checkpoints, their cards and their costs."""

from fulmen.models.catalog import (
    Card,
    Language,
    get_card,
    list_cards,
    published_config,
    pull,
    render_card,
    resolve,
)
from fulmen.models.checkpoint import (
    Checkpoint,
    Config,
    Model,
    config_from_dict,
    load_model,
    new_model,
    read_config,
    save_model,
    stream_model,
)
from fulmen.models.config import DTYPES, PackedConfig, read_json
from fulmen.models.download import OnProgress
from fulmen.models.fingerprint import fingerprint
from fulmen.models.flops import count_parameters, decode_bytes, prefill_flops
from fulmen.models.layers import Trace
from fulmen.models.m1 import M1, M1Config, router_aux_loss
from fulmen.models.m2 import M2, M2Config
from fulmen.models.packed import Cache, Packed, StateSnapshot
from fulmen.models.plan import (
    Plan,
    figure1_svg,
    figure1_text,
    make_plan,
    parse_bytes,
    render_plan,
)
from fulmen.models.quantize import (
    Drift,
    QuantizeConfig,
    measure_drift,
    parse_packed,
    quantize_checkpoint,
    sample_text,
)

__all__ = [
    "DTYPES",
    "M1",
    "M2",
    "Cache",
    "Card",
    "Checkpoint",
    "Config",
    "Drift",
    "Language",
    "M1Config",
    "M2Config",
    "Model",
    "OnProgress",
    "Packed",
    "PackedConfig",
    "Plan",
    "QuantizeConfig",
    "StateSnapshot",
    "Trace",
    "config_from_dict",
    "count_parameters",
    "decode_bytes",
    "figure1_svg",
    "figure1_text",
    "fingerprint",
    "get_card",
    "list_cards",
    "load_model",
    "make_plan",
    "measure_drift",
    "new_model",
    "parse_bytes",
    "parse_packed",
    "prefill_flops",
    "published_config",
    "pull",
    "quantize_checkpoint",
    "read_config",
    "read_json",
    "render_card",
    "render_plan",
    "resolve",
    "router_aux_loss",
    "sample_text",
    "save_model",
    "stream_model",
]
