"""Models that come with the package: their folder, their record, the closed set that they know."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fulmen.catalog import (
    Card,
    Language,
    Record,
    ScoreRecord,
    StageRecord,
    context_of,
    find_config,
    get_card,
    greeting_of,
    list_cards,
    pull,
    record_of,
    render_card,
    resolve,
    resolve_without_weights,
    text_of,
)
from fulmen.catalog import cards as catalog
from fulmen.catalog.cards import LANGUAGES
from fulmen.chat import Message
from fulmen.envs import load_environment
from fulmen.envs.basics import KINDS as BASICS
from fulmen.envs.calls import KINDS as CALLS
from fulmen.llm import LLM
from fulmen.models import count_parameters
from fulmen.sampling import SamplingParams
from tests.tiny import write_checkpoint

MINIS = [card.name for card in list_cards() if card.folder is not None]
DRAWN = 30
"""Tasks of a kind that an example is looked for in"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose minis are smaller than small."""
    for kind in ("m1", "m2"):
        write_checkpoint(tmp_path / f"minis/mini-{kind}", kind)
    monkeypatch.setattr(catalog, "PACKAGE", tmp_path)
    return tmp_path


def record() -> Record:
    return Record(
        machine="Some CPU, 2 cores",
        stages=(
            StageRecord(name="learn", tokens=20_000_000, seconds=5400.4),
            StageRecord(name="practice", tokens=1_234_567, seconds=3599.6),
        ),
        scores=(ScoreRecord(name="basics:add:test", tasks=1000, right=925, low=0.907, high=0.94),),
        seed=7,
    )


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_they_are_listed_first() -> None:
    assert MINIS == ["mini-m1", "mini-m2"]
    assert [card.name for card in list_cards()][:2] == MINIS


@pytest.mark.parametrize("use", [resolve, pull, resolve_without_weights])
@pytest.mark.parametrize("name", [*MINIS, "MINI-M1"])
def test_a_name_is_the_folder_in_the_package(name: str, use: object, package: Path) -> None:
    assert callable(use)
    assert use(name) == package / "minis" / name.lower()


@pytest.mark.parametrize("name", MINIS)
def test_an_installation_without_weights_is_said_to_be_one(name: str, package: Path) -> None:
    (package / f"minis/{name}/model.safetensors").unlink()
    for use in (resolve, pull, resolve_without_weights, LLM.load):
        with pytest.raises(ValueError, match=r"comes with Fulmen, but .* holds no safetensors"):
            use(name)
    assert find_config(name).max_position_embeddings == context_of(get_card(name))


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("name", MINIS)
def test_numbers_of_a_card_are_those_of_the_folder(
    name: str, lang: Language, package: Path
) -> None:
    card, config = get_card(name), find_config(name)
    shown = one_line(render_card(card, lang))
    mark = "," if lang == "en" else "."
    assert f"{count_parameters(config).total:,}".replace(",", mark) in shown
    assert f"{config.max_position_embeddings:,}".replace(",", mark) in text_of(card, lang).limits
    assert f"{config.num_hidden_layers} " in shown
    assert "{" not in text_of(card, lang).greeting
    assert greeting_of(card, lang).startswith(f"{name}: ")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_record_is_shown_and_without_one_nothing_is(lang: Language, package: Path) -> None:
    card = get_card("mini-m1")
    before = render_card(card, lang)
    assert record_of(card) is None
    record().write(package / "minis/mini-m1")
    assert record_of(card) == record()
    shown = render_card(card, lang)
    assert shown.startswith(before)
    told = one_line(shown.removeprefix(before))
    facts = {
        "en": (
            *("next-token training 20,000,000 5,400", "reinforcement learning 1,234,567 3,600"),
            *("in total 21,234,567 9,000", "machine: Some CPU, 2 cores"),
            "basics:add:test 925 1,000 92.5 % 90.7 to 94.0 %",
        ),
        "de": (
            *("nächsten Tokens 20.000.000 5.400", "bestärkendes Lernen 1.234.567 3.600"),
            *("insgesamt 21.234.567 9.000", "Rechner: Some CPU, 2 cores"),
            "basics:add:test 925 1.000 92,5 % 90,7 bis 94,0 %",
        ),
    }
    for fact in facts[lang]:
        assert fact in told
    replace(record(), stages=(), scores=()).write(package / "minis/mini-m1")
    assert render_card(card, lang) == before


def examples() -> Iterator[tuple[str, Language, str, str]]:
    for name, environment in (("mini-m1", "basics"), ("mini-m2", "calls")):
        for lang in LANGUAGES:
            for kind, question in get_card(name).text[lang].examples.items():
                yield f"{environment}:{kind}:test", lang, name, question


@pytest.mark.parametrize(("name", "kinds"), [("mini-m1", BASICS), ("mini-m2", CALLS)])
def test_a_card_has_an_example_of_each_kind(name: str, kinds: dict[str, object]) -> None:
    for lang in LANGUAGES:
        text = get_card(name).text[lang]
        assert list(text.examples) == list(kinds)
        assert len(text.limits) > 100
        shown = render_card(get_card(name), lang)
        assert all(f"\n  {kind} " in shown for kind in kinds)


@pytest.mark.parametrize(("environment", "lang", "name", "question"), list(examples()))
def test_an_example_is_a_question_that_no_model_was_trained_on(
    environment: str, lang: Language, name: str, question: str
) -> None:
    tasks = load_environment(environment, seed=0)
    assert question in {tasks.task(index).messages[-1].content for index in range(DRAWN)}


@pytest.mark.parametrize("known", [get_card(name) for name in MINIS], ids=MINIS)
def test_a_model_whose_weights_are_there_loads_and_answers(known: Card) -> None:
    assert known.folder is not None
    if not any((catalog.PACKAGE / known.folder).glob("*.safetensors")):
        pytest.skip(f"the weights of {known.name} are not in this tree")
    llm = LLM.load(known.name)
    assert llm.defaults.temperature == known.sampling.temperature
    assert known.title in llm.card(known.name)["en"]
    question = text_of(known, "en").examples[next(iter(text_of(known, "en").examples))]
    params = replace(llm.defaults, max_tokens=64)
    assert isinstance(params, SamplingParams)
    completion = llm.chat([Message("user", question)], params=params)
    assert completion.tokens
    assert completion.reply.thinking or completion.reply.content
