"""The models that Fulmen knows by name: facts, downloads, recommended sampling."""

from fulmen.catalog.card_text import greeting_of, render_card, text_of
from fulmen.catalog.cards import (
    Card,
    Language,
    context_of,
    find_card,
    find_config,
    get_card,
    list_cards,
    local_path,
    package_folder,
    published_config,
    record_of,
)
from fulmen.catalog.checkpoint_card import checkpoint_card
from fulmen.catalog.download import OnProgress, cache_folder, fetch_sdist
from fulmen.catalog.record import Record, ScoreRecord, StageRecord
from fulmen.catalog.resolve import has_begun, pull, resolve, resolve_without_weights
from fulmen.catalog.sampling import recommended_sampling

__all__ = [
    "Card",
    "Language",
    "OnProgress",
    "Record",
    "ScoreRecord",
    "StageRecord",
    "cache_folder",
    "checkpoint_card",
    "context_of",
    "fetch_sdist",
    "find_card",
    "find_config",
    "get_card",
    "greeting_of",
    "has_begun",
    "list_cards",
    "local_path",
    "package_folder",
    "published_config",
    "pull",
    "recommended_sampling",
    "record_of",
    "render_card",
    "resolve",
    "resolve_without_weights",
    "text_of",
]
