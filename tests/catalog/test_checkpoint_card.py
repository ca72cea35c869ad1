"""The card of the checkpoint that runs: what its config and its files say, and no more."""

from dataclasses import replace
from pathlib import Path

import pytest

from fulmen.catalog import Card, checkpoint_card, list_cards, published_config
from fulmen.models import Config, Fp8Config, PackedConfig, count_parameters
from tests.models.helpers import tiny_m1, tiny_m2


def card(config: Config, folder: Path | None = None, name: str = "mine") -> dict[str, str]:
    found = checkpoint_card(config, folder, name=name, has_thoughts=True, has_tools=False)
    return {str(lang): text for lang, text in found.items()}


@pytest.mark.parametrize("config", [tiny_m1(), tiny_m2()], ids=["m1", "m2"])
def test_a_card_says_the_same_in_both_languages(config: Config) -> None:
    cards = card(config)
    assert list(cards) == ["en", "de"]
    lines = [text.split("\n") for text in cards.values()]
    assert len(lines[0]) == len(lines[1])
    assert f"- Parameters: {count_parameters(config).total:,}, " in cards["en"]
    assert ("lightning attention" in cards["en"]) == (0 in config.attn_type_list)
    assert "- Can: think before it answers" in cards["en"]
    assert "- Kann: vor der Antwort nachdenken" in cards["de"]
    assert "Licence" not in cards["en"]


@pytest.mark.parametrize("known", list_cards(), ids=lambda card: card.name)
def test_a_model_of_the_catalog_has_its_sentences_and_its_licence(known: Card) -> None:
    config = published_config(known.name)
    hub = known.hub or known.name
    for name in (known.name, hub, hub.rpartition("/")[2].upper()):
        cards = card(config, name=name)
        assert known.title in cards["en"]
        assert known.text["de"].licence in cards["de"]
        assert len(cards["en"]) < 4000
    assert known.title in card(config, Path("/models") / hub)["en"]
    other = replace(config, hidden_size=2 * config.hidden_size)
    assert known.title not in card(other, name=known.name)["en"]


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": "---\nlicense: apache-2.0\n---\n# A model"}, "apache-2.0"),
        ({"README.md": "---\r\nlicense: other\r\nlicense_name: 'ours-1'\r\n---\r\n"}, "ours-1"),
        ({"README.md": "license: mit", "LICENSE": "\n  MIT License\n\nCopyright"}, "MIT License"),
        ({"README.md": "---\nlicense: <script>\n---", "LICENSE": "[x](http://x)\nMIT"}, None),
        ({"README.md": "---\nlicense: " + "x" * 10_000_000, "LICENSE": "y" * 1000}, None),
        ({"README.md": b"\xff\xfe\x00"}, None),
        ({}, None),
    ],
)
def test_a_licence_is_what_the_files_beside_the_weights_say(
    tmp_path: Path, files: dict[str, str | bytes], licence: str | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    cards = card(tiny_m2(), tmp_path)
    if licence is None:
        assert "Licence" not in cards["en"]
    else:
        assert cards["en"].endswith(f"- Licence: {licence}")
        assert cards["de"].endswith(f"- Lizenz: {licence}")


def test_weights_are_told_in_bits() -> None:
    fp8 = Fp8Config(weight_block_size=(128, 128), modules_to_not_convert=())
    packed = PackedConfig(bits=4, group_size=32)
    for quantization, said in (
        (fp8, "8 Bit (e4m3)"),
        (packed, "4 Bit in Gruppen zu 32"),
        (None, "float32, 32 Bit"),
    ):
        config = replace(tiny_m2(), quantization_config=quantization)
        assert f"- Gewichte: {said}" in card(config)["de"].split("\n")
