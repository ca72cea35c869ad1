"""Recommended sampling of a model: from its own file, its card, or its family."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fulmen.catalog.cards import get_card, list_cards
from fulmen.files import read_json
from fulmen.sampling import SamplingParams


def recommended_sampling(name: str, folder: Path, format: str) -> SamplingParams:
    """Return the sampling of generation_config.json, else of the card, else of the family.

    name     the name that the model was loaded by; a catalog name has a card
    format   the name of its chat format, which tells the family

    The thinking budget is the one that the card names.
    """
    card = get_card(name) if name.lower() in (card.name for card in list_cards()) else None
    params = _generation_config(folder / "generation_config.json")
    if params is None and card is not None:
        params = SamplingParams(**asdict(card.sampling))
    if params is None:
        params = SamplingParams(top_k=None if format == "minimax_m1" else 40)
    return replace(params, thinking_budget=card.thinking_budget) if card is not None else params


def _generation_config(file: Path) -> SamplingParams | None:
    """Read generation_config.json; None if it says nothing about sampling.

    The hub's libraries write null for an absent field, and a top_k of 0 for no limit.
    """
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
