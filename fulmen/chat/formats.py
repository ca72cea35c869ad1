"""The table of formats, and the choice of one for a checkpoint.

`get_format` picks a native format by name; `load_format` reads a checkpoint's folder. There a chat
template that is not MiniMax's decides: a small model in MiniMax's container keeps its own. Else
the family in config.json decides, and if it tells none, the template.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fulmen.chat.format import ChatFormat
from fulmen.chat.m1 import MiniMaxM1
from fulmen.chat.m2 import DEFAULT_IDENTITY, MiniMaxM2
from fulmen.chat.rendering import MAX_TEMPLATE_CHARS
from fulmen.chat.template import TemplateFormat
from fulmen.chat.tokenizer import read_special_tokens
from fulmen.families import family_of, family_of_name, names_in, refusal_of
from fulmen.files import read_json_if_present, shorten
from fulmen.sampling import shown

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
_TEMPLATE_MARKS = {"minimax_m1": "<beginning_of_sentence>", "minimax_m2": "]~b]"}
_IDENTITY = re.compile(r"""model_identity\s*=\s*(?P<quote>["'])(?P<text>.*?)(?<!\\)(?P=quote)""")


def get_format(name: str) -> ChatFormat:
    """Return the native format of that name, such as minimax_m2 or MiniMax-M1."""
    make = _FORMATS.get(name.lower().replace("-", "_"))
    if make is None:
        raise ValueError(
            f"format {shorten(name, 80)} is not known, it must be one of {', '.join(_FORMATS)}"
        )
    return make()


def load_format(folder: str | Path, *, model_type: str | None = None) -> ChatFormat:
    """Return the format that the checkpoint in this folder speaks.

    model_type  in place of the one in config.json: of a model that is served with the tokenizer and
                the chat template of this folder

    Raises ValueError for a folder that tells no format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder, it must hold a checkpoint")
    tokenizer_config = read_json_if_present(folder / "tokenizer_config.json")
    template = _read_template(folder, tokenizer_config)
    config: dict[str, object] = {"model_type": model_type}
    if model_type is None:
        config = read_json_if_present(folder / "config.json")
    for name in names_in(config):
        if (refusal := refusal_of(name)) is not None:
            raise ValueError(f"{folder} is of {shorten(name, 80)}: {refusal}")
    family = family_of(config)
    if template is None:
        if family is None:
            raise ValueError(
                f"{folder} has no chat template and its model_type is "
                f"{shown(config.get('model_type'))}, it needs a chat_template.jinja or a "
                "chat_template in tokenizer_config.json"
            )
        return get_format(family)
    by_template = next((name for name, mark in _TEMPLATE_MARKS.items() if mark in template), None)
    if by_template is None:
        return TemplateFormat(template, read_special_tokens(tokenizer_config))
    # transformers calls both models "minimax": with that name alone, the template decides.
    names = [name for name in names_in(config) if name.lower() != "minimax"]
    by_config = next((found for name in names if (found := family_of_name(name))), None)
    if by_config is not None and by_config != by_template:
        _logger.warning(
            "%s is a %s checkpoint with the chat template of %s, the format of %s is used",
            folder,
            by_config,
            by_template,
            by_config,
        )
        return get_format(by_config)
    format = get_format(by_template)
    if by_template == "minimax_m2":
        identity = _IDENTITY.search(template)
        format = MiniMaxM2(model_identity=identity["text"] if identity else DEFAULT_IDENTITY)
    format.template = template
    return format


def _read_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """Read the chat template from its own file or from tokenizer_config.json, if there is one."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        with path.open("rb") as file:
            source = file.read(4 * MAX_TEMPLATE_CHARS + 1)
        try:
            return _short(source.decode(), path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    path = folder / "tokenizer_config.json"
    found = tokenizer_config.get("chat_template")
    if found is None:
        path = folder / "chat_template.json"
        found = read_json_if_present(path).get("chat_template")
    if isinstance(found, list):  # several, by name; the one called default is for chat
        named = [
            (item.get("name"), item.get("template")) for item in found if isinstance(item, dict)
        ]
        first = named[0][1] if named else None
        found = next((template for name, template in named if name == "default"), first)
    if found is not None and not isinstance(found, str):
        raise ValueError(
            f"the chat_template of {folder} is of type {type(found).__name__}, not text"
        )
    return None if found is None else _short(found, path)


def _short(template: str, path: Path) -> str:
    if len(template) > MAX_TEMPLATE_CHARS:
        raise ValueError(
            f"the chat template in {path} has more than {MAX_TEMPLATE_CHARS:,} characters, "
            "none is that long"
        )
    return template
