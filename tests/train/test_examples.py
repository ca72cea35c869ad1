"""Examples: ids are those of inference, targets what the model would have sampled."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.chat import Message, TemplateFormat, Tokenizer, ToolCall, get_format, sampled_ids
from fulmen.sampling import SamplingParams
from fulmen.train import Coder, Example
from tests.examples import examples
from tests.train.lm_helpers import coder

FORMATS = ["minimax_m1", "minimax_m2"]
TOOLS = [{"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}]
TALK = [
    Message("system", "Be brief."),
    Message("user", "One?"),
    Message("assistant", "Two.", thinking="Hm."),
    Message("user", "Look!"),
    Message("assistant", "", thinking="I look.", tool_calls=(ToolCall("look", {"at": 1}),)),
    Message("tool", "a door"),
    Message("assistant", "A door."),
]


@pytest.fixture(scope="module", params=FORMATS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Coder:
    return coder(tmp_path_factory.mktemp("tokenizer"), request.param)


def said(coder: Coder, example: Example) -> list[str]:
    """Return the texts of runs of targets."""
    runs: list[list[int]] = []
    for target in example.targets:
        if not runs or target != runs[-1][-1] + 1:
            runs.append([])
        runs[-1].append(target)
    return [coder.tokenizer.decode([example.ids[i] for i in run]) for run in runs]


def test_each_answer_is_learnt_once_after_the_prompt_that_inference_gives_it(made: Coder) -> None:
    """Every answer: the ids before it are those of the engine's prompt for it."""
    assert made.format is not None
    found = made.conversation(TALK, TOOLS)
    num_learnt = 0
    for example in found:
        targets = set(example.targets)
        starts = [i for i in example.targets if i - 1 not in targets]
        for start in starts:
            num_learnt += 1
            prompts = [
                made.format.encode(TALK[:place], TOOLS, tokenizer=made.tokenizer)
                for place, one in enumerate(TALK)
                if one.role == "assistant"
            ]
            assert list(example.ids[:start]) in prompts
    assert num_learnt == 3


def test_m1_learns_a_whole_conversation_at_once(tmp_path: Path) -> None:
    own = coder(tmp_path)
    (example,) = own.conversation(TALK, TOOLS)
    assert said(own, example) == [
        "<think>\nHm.\n</think>\nTwo.<end_of_sentence>",
        '<think>\nI look.\n</think>\n<tool_calls>\n{"name": "look", "arguments": {"at": 1}}\n'
        "</tool_calls><end_of_sentence>",
        "A door.<end_of_sentence>",
    ]


def test_m2_learns_the_answers_whose_thoughts_a_prompt_shows(tmp_path: Path) -> None:
    own = coder(tmp_path, "minimax_m2")
    first, second = own.conversation(TALK, TOOLS)
    assert said(own, first) == ["Hm.\n</think>\n\nTwo.[e~["]
    calls = (
        '\n<minimax:tool_call>\n<invoke name="look">\n<parameter name="at">1</parameter>\n'
        "</invoke>\n</minimax:tool_call>"
    )
    assert said(own, second) == [f"I look.\n</think>\n\n{calls}[e~[", "\n</think>\n\nA door.[e~["]


TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)


@settings(max_examples=examples(100), deadline=None)
@given(
    turns=st.lists(st.tuples(TEXTS, TEXTS.filter(bool), st.none() | TEXTS), min_size=1, max_size=4),
    format=st.sampled_from(FORMATS),
)
def test_what_is_learnt_reads_as_the_answers(
    turns: list[tuple[str, str, str | None]],
    format: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    own = coder(tmp_path_factory.mktemp("tokenizer"), format)
    assert own.format is not None
    tags = set(own.format.tags)
    messages = []
    for asked, answer, thought in turns:
        if any(tag in (thought or "") + answer for tag in tags):
            return
        messages += [Message("user", asked), Message("assistant", answer, thinking=thought)]
    found = own.conversation(messages)
    answers = [text for example in found for text in said(own, example)]
    assert len(answers) == len(turns)
    end = own.format.end_of_turn
    for text, (_, answer, _) in zip(answers, turns, strict=True):
        assert text.endswith(f"{answer}{end}")


def test_an_answer_of_weight_0_is_read_and_not_learnt(made: Coder) -> None:
    talk: list[Any] = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Wrong.", "weight": 0},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Right.", "weight": 1},
    ]
    (example,) = made.conversation(talk)
    assert [text.count("Right.") for text in said(made, example)] == [1]
    assert "Wrong." in made.tokenizer.decode(list(example.ids))
    with pytest.raises(ValueError, match=r"^the weight of a message is 0.5, it must be 0 or 1$"):
        made.conversation([*talk[:1], {**talk[1], "weight": 0.5}])


def test_sampled_ids_are_learnt_as_they_are(made: Coder) -> None:
    assert made.format is not None
    start = "" if made.format.thinking_open_in_prompt else "<think>\n"
    end = made.format.thinking_end
    ids = made.tokenizer.encode(f"{start}Hm.\n\n\n{end}\n\nTwo")  # not as the format lays it out
    sampled = sampled_ids(made.format, made.tokenizer, ids, SamplingParams(), has_end=False)
    reply = Message("assistant", "Two", thinking="Hm.", sampled=sampled)
    (example,) = made.conversation([Message("user", "One?"), reply])
    assert [example.ids[i] for i in example.targets] == [*ids, made.end_id]


def test_a_text_is_learnt_from_its_first_token_to_its_end(made: Coder) -> None:
    (example,) = made.text("ab[e~[")
    assert len(example.ids) == 2 + 2 + 4  # the characters of a control token are characters
    assert list(example.targets) == list(range(1, 8))
    assert example.ids[-1] == made.end_id
    (pair,) = made.pair("ab", "cd")
    assert said(made, pair) == [f"cd{made.tokenizer.decode([made.end_id])}"]
    (later,) = made.text("cd", before="ab", has_end=False)
    assert made.tokenizer.decode(list(later.ids)) == "bcd"
    assert said(made, later) == ["cd"]


TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_template_of_its_own_gives_an_example_for_each_answer(made: Coder) -> None:
    end = made.tokenizer.decode([made.end_id])
    format = TemplateFormat(TEMPLATE.replace("<end>", end), {"eos_token": end})
    own = Coder(made.tokenizer, format)
    talk = [Message(*each) for each in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    found = own.conversation([*talk, Message("assistant", "d")])
    assert [said(own, example) for example in found] == [[f"b{end}"], [f"d{end}"]]
    texts = [own.tokenizer.decode(list(example.ids)) for example in found]
    assert texts[1] == f"<|user|>a{end}<|assistant|>b{end}<|user|>c{end}<|assistant|>d{end}"


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([Message("user", "a")], "the conversation has no answer of the assistant to learn"),
        ([], "the conversation has no answer of the assistant to learn"),
        ([{"role": "robot", "content": "a"}, Message("assistant", "b")], "robot"),
    ],
)
def test_a_conversation_without_answers_is_refused(
    made: Coder, messages: list[Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        made.conversation(messages)


def test_a_model_without_a_format_learns_no_conversations(made: Coder) -> None:
    with pytest.raises(ValueError, match=r"^the model has no chat format, "):
        Coder(made.tokenizer, None).conversation(TALK)
    with pytest.raises(ValueError, match=r"^the tokenizer names no token that ends a text, "):
        Coder(Tokenizer(made.tokenizer._tokenizer), None).text("a")


def test_a_vocabulary_of_another_format_is_one_sentence(tmp_path: Path) -> None:
    own = Coder(coder(tmp_path).tokenizer, get_format("minimax_m2"))
    with pytest.raises(
        ValueError, match=r"^the tokenizer has no token \[e~\[, which ends turns in"
    ):
        own.conversation(TALK)
