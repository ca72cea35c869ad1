"""How a model is best sampled: its own file, its card, or its family."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fulmen.catalog.cards import get_card, list_cards
from fulmen.files import read_json
from fulmen.sampling import SamplingParams


def recommended_sampling(name: str, folder: Path, format: str) -> SamplingParams:
    """The sampling of generation_config.json, else of the model's card, else of its family; and the
    thinking budget that the card says it was trained to. format is the chat format's name.

    A field that is null is absent, and a top_k of 0 means none: so the hub's libraries write them.
    """
    card = get_card(name) if name.lower() in (card.name for card in list_cards()) else None
    params = _generation_config(folder / "generation_config.json")
    if params is None and card is not None:
        params = SamplingParams(**asdict(card.sampling))
    if params is None:
        params = SamplingParams(top_k=None if format == "minimax_m1" else 40)
    return replace(params, thinking_budget=card.thinking_budget) if card is not None else params


def _generation_config(file: Path) -> SamplingParams | None:
    given = read_json(file) if file.exists() else {}
    fields: dict[str, Any] = {
        key: given[key]
        for key in ("temperature", "top_p", "top_k", "min_p")
        if given.get(key) is not None
    }
    if fields.get("top_k") == 0:
        fields["top_k"] = None
    if given.get("do_sample") is False:
        fields["temperature"] = 0
    if not fields:
        return None
    try:
        return SamplingParams(**({"top_k": None, "top_p": 1.0} | fields))
    except ValueError as error:
        raise ValueError(f"{error}, see {file}") from None
