"""Names that stood behind this door in 0.1 and have a room of their own now: found there on use.

The door takes `__getattr__` (PEP 562) from here, so `from fulmen.models import load_model` works.
"""

from importlib import import_module
from typing import Any, Final

_ROOMS: Final = {
    "fulmen.checkpoints": "Checkpoint fingerprint load_model read_config save_model stream_model",
    "fulmen.catalog": "Card Language OnProgress get_card list_cards published_config pull "
    "render_card resolve",
    "fulmen.plan": "Plan figure1_svg figure1_text make_plan render_plan",
    "fulmen.quantize": "Drift QuantizeConfig measure_drift parse_packed quantize_checkpoint "
    "sample_text",
    "fulmen.files": "read_json",
    "fulmen.units": "parse_bytes",
}
MOVED: Final = {name: room for room, names in _ROOMS.items() for name in names.split()}
"""The room of each name now."""


def __getattr__(name: str) -> Any:
    """Return a name that has moved, from its new room."""
    if name not in MOVED:
        raise AttributeError(f"module 'fulmen.models' has no attribute {name!r}")
    return getattr(import_module(MOVED[name]), name)
