"""The table of formats, and which of them a checkpoint speaks.

`get_format` picks a native format by name; `load_format` reads a checkpoint's folder. There a chat
template that is not MiniMax's decides: a small model in MiniMax's container keeps its own. Else
config.json does, its architectures before its model_type, and if neither tells, the template.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fulmen.chat.format import ChatFormat
from fulmen.chat.m1 import MiniMaxM1
from fulmen.chat.m2 import DEFAULT_IDENTITY, MiniMaxM2
from fulmen.chat.template import TemplateFormat
from fulmen.chat.tokenizer import read_json_object, read_special_tokens

_logger = logging.getLogger(__name__)


def _named(release: str) -> MiniMaxM2:
    sentence = f"{DEFAULT_IDENTITY} Your name is MiniMax-{release} and is built by MiniMax."
    return MiniMaxM2(model_identity=sentence)


_FORMATS: dict[str, Callable[[], ChatFormat]] = {
    "minimax_m1": MiniMaxM1,
    "minimax_m2": MiniMaxM2,
    "minimax_m2.1": lambda: _named("M2.1"),
    "minimax_m2.5": lambda: _named("M2.5"),
    "minimax_m2.7": lambda: _named("M2.7"),
}
_MODELS = {
    "minimaxm1forcausallm": "minimax_m1",
    "minimaxtext01forcausallm": "minimax_m1",
    "minimaxforcausallm": "minimax_m1",
    "minimaxm2forcausallm": "minimax_m2",
    "minimaxm1": "minimax_m1",
    "minimaxtext01": "minimax_m1",
    "minimaxm2": "minimax_m2",
}
"""architectures and model_type, in lower case without underscores and hyphens."""
_ANY_MINIMAX = "minimax"
"""A model_type of checkpoints of both models; with nothing else to go by, it means the older."""
_TEMPLATE_MARKS = {"minimax_m1": "<beginning_of_sentence>", "minimax_m2": "]~b]"}
_IDENTITY = re.compile(r"""model_identity\s*=\s*(?P<quote>["'])(?P<text>.*?)(?<!\\)(?P=quote)""")


def get_format(name: str) -> ChatFormat:
    """The native format of that name, such as minimax_m2 or MiniMax-M1."""
    make = _FORMATS.get(name.lower().replace("-", "_"))
    if make is None:
        raise ValueError(f"format {name} is not known, it must be one of {', '.join(_FORMATS)}")
    return make()


def load_format(folder: str | Path) -> ChatFormat:
    """The format that the checkpoint in this folder speaks."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder, it must hold a checkpoint")
    tokenizer_config = read_json_object(folder / "tokenizer_config.json")
    template = _read_template(folder, tokenizer_config)
    config = read_json_object(folder / "config.json")
    by_config = _by_config(config)
    if template is None:
        if by_config is None and str(config.get("model_type")).lower() == _ANY_MINIMAX:
            by_config = "minimax_m1"
        if by_config is None:
            raise ValueError(
                f"{folder} has no chat template and its model_type is {config.get('model_type')}, "
                "it needs a chat_template.jinja or a chat_template in tokenizer_config.json"
            )
        return get_format(by_config)
    by_template = next((name for name, mark in _TEMPLATE_MARKS.items() if mark in template), None)
    if by_template is None:
        return TemplateFormat(template, read_special_tokens(tokenizer_config))
    if by_config is not None and by_config != by_template:
        _logger.warning(
            "%s is a %s checkpoint with the chat template of %s, the format of %s is used",
            folder,
            by_config,
            by_template,
            by_config,
        )
        return get_format(by_config)
    if by_template == "minimax_m2":
        identity = _IDENTITY.search(template)
        return MiniMaxM2(model_identity=identity["text"] if identity else DEFAULT_IDENTITY)
    return get_format(by_template)


def _by_config(config: Mapping[str, Any]) -> str | None:
    """The format of the model that config.json names, if it does."""
    architectures = config.get("architectures")
    names = [*architectures] if isinstance(architectures, list) else []
    for name in (*names, config.get("model_type")):
        known = _MODELS.get(re.sub("[-_]", "", str(name)).lower())
        if known is not None:
            return known
    return None


def _read_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The chat template, from its own file or from tokenizer_config.json, if there is one."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = tokenizer_config.get("chat_template")
    if found is None:
        found = read_json_object(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # several, by name; the one called default is for chat
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default", next(iter(named.values()), None))
    if found is not None and not isinstance(found, str):
        raise ValueError(
            f"the chat_template of {folder} is of type {type(found).__name__}, not text"
        )
    return found
