"""Import paths of 0.1 that have moved: an import of one fails, and the sentence names the new path.

Python asks a finder for a module that it did not find. It asks the same way for a name that a
package lacks, as in `from fulmen.models import load_model`. So one table answers for both.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Final

MOVED: Final[Mapping[str, str]] = {
    "fulmen.async_llm": "fulmen.llm.LocalModel",
    "fulmen.llm.AsyncLLM": "fulmen.llm.LocalModel",
    "fulmen.llm.StopTexts": "fulmen.chat.StopTexts",
    "fulmen.llm.recommended_sampling": "fulmen.catalog.recommended_sampling",
    "fulmen.scale": "fulmen.evaluate",
    "fulmen.terminal": "fulmen.cli.conversation",
    "fulmen.thinking": "fulmen.llm.thinking",
    **dict.fromkeys(("fulmen.models.catalog", "fulmen.models.download"), "fulmen.catalog"),
    **dict.fromkeys(
        ("fulmen.models.checkpoint", "fulmen.models.fingerprint", "fulmen.models.gguf"),
        "fulmen.checkpoints",
    ),
    **{
        f"{old}.{name}": f"{new}.{name}"
        for old, new, names in (
            (
                "fulmen.models",
                "fulmen.catalog",
                "Card Language OnProgress get_card list_cards published_config pull render_card "
                "resolve",
            ),
            (
                "fulmen.models",
                "fulmen.checkpoints",
                "Checkpoint fingerprint load_model read_config save_model stream_model",
            ),
            (
                "fulmen.models",
                "fulmen.plan",
                "Plan figure1_svg figure1_text make_plan render_plan",
            ),
            (
                "fulmen.models",
                "fulmen.quantize",
                "Drift QuantizeConfig measure_drift parse_packed quantize_checkpoint sample_text",
            ),
            ("fulmen.models", "fulmen.files", "read_json"),
            ("fulmen.models", "fulmen.units", "parse_bytes"),
            ("fulmen.engine", "fulmen.sampling", "FinishReason"),
            ("fulmen.engine", "fulmen.sessions", "SessionStore Turn"),
        )
        for name in names.split()
    },
    "fulmen.models.plan": "fulmen.plan",
    "fulmen.models.quantize": "fulmen.quantize",
}
"""New path by old path, of modules and of names that were behind a room's door."""


class _Finder:
    """Finder that finds nothing, and says where an old path has gone."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None, target: object = None) -> None:
        if fullname in MOVED:
            raise ImportError(f"{fullname} has moved, it is now {MOVED[fullname]}", name=fullname)


def install() -> None:
    """Ask this table last, after every finder that could find a module."""
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)
