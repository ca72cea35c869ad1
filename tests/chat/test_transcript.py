"""Sampled ids stand unchanged in every later prompt that shows what they say."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from fulmen.chat import (
    ChatFormat,
    Completion,
    Message,
    SampledIds,
    TemplateFormat,
    Token,
    Tokenizer,
    ToolCall,
    Transcript,
    Usage,
    find_spans,
    get_format,
    read_turn,
)
from fulmen.chat.transcript import num_common, sampled_ids
from fulmen.sampling import SamplingParams
from tests.chat.helpers import NAMES, TEXT, real_tokenizer
from tests.examples import examples

TEMPLATE = TemplateFormat(
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    {"eos_token": "<|end|>"},
)
FORMATS: dict[str, ChatFormat] = {
    "m1": get_format("minimax_m1"),
    "m2": get_format("minimax_m2"),
    "template": TEMPLATE,
}
CONTROLS = [
    *("<begin_of_document>", "<beginning_of_sentence>", "<end_of_sentence>"),
    *("]~!b[", "]~b]", "[e~[", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"),
]
TAGS = ["<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>"]
MERGES = [("Ċ", "Ċ"), ("ĊĊ", "O"), ("Ċ", "x"), ("O", "s"), ("Os", "lo"), ("l", "o"), ("Ġ", "x")]
"""Tokens such as a line break with an answer's first letter: they straddle a dropped thought."""


def small_tokenizer() -> Tokenizer:
    """A byte tokenizer with a few merges across layout and text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: i for i, char in enumerate(alphabet)}
    for first, second in sorted(MERGES, key=lambda pair: len("".join(pair))):
        vocabulary.setdefault(first + second, len(vocabulary))
    merges = [pair for pair in MERGES if all(part in vocabulary for part in pair)]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in CONTROLS])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in TAGS])
    return Tokenizer(tokenizer)


SMALL = small_tokenizer()


def answer(
    format: ChatFormat,
    tokenizer: Tokenizer,
    transcript: Transcript,
    messages: Sequence[Message],
    text: str,
    random_: random.Random,
    *,
    ends: bool = True,
) -> Completion:
    """A completion with this text, as ids that the text itself would not be encoded as."""
    ids: list[int] = []
    rest = text
    while rest:  # pieces of any length: sampled ids need not be the ones that encode gives
        size = random_.choice([1, 2, 3, 9, len(rest)])
        ids += tokenizer.encode(rest[:size])
        rest = rest[size:]
    end = tokenizer.token_id(format.end_of_turn)
    ends = ends and end is not None  # MiniMax's published tokenizer is M2's, without M1's end
    prompt = transcript.prompt(messages)
    spoken = list(ids)
    tokens = [*spoken, end] if ends and end is not None else spoken
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.feed([token_id]) for token_id in spoken]
    assert "".join(pieces) + detokenizer.flush() == text
    return Completion(
        reply=format.parse(text),
        finish_reason="stop" if ends else "length",
        prompt_ids=prompt.ids,
        tokens=tuple(Token(token_id, -0.5) for token_id in tokens),
        params=SamplingParams(seed=1),
        usage=Usage(num_prompt_tokens=len(prompt.ids), num_new_tokens=len(tokens)),
        sampled=find_spans(format, spoken, pieces),
    )


def raw_text(format: ChatFormat, draw: Any) -> str:
    """Return text that a model of this format may write, with layout of its own."""
    thought, content = draw(TEXT), draw(TEXT.filter(lambda text: "<think" not in text))
    layout = draw(st.sampled_from(["\n\n", "\n", "", "\n\n\n"]))
    calls = ""
    if format.name == "template":
        return f"{thought}{content}"
    if draw(st.booleans()):
        name = draw(NAMES)
        if format.name == "minimax_m2":
            calls = (
                f'\n<minimax:tool_call>\n<invoke name="{name}">\n'
                '<parameter name="a">Oslo</parameter>\n</invoke>\n</minimax:tool_call>'
            )
        else:
            call = json.dumps({"name": name, "arguments": {"a": "Oslo"}})
            calls = f"\n<tool_calls>\n{call}\n</tool_calls>"
    opening = "" if format.thinking_open_in_prompt else "<think>\n"
    kind = draw(st.sampled_from(["whole", "whole", "no thought", "all thought"]))
    if kind == "all thought":
        return f"{opening}{thought}x"
    if kind == "no thought":
        return f"</think>{layout}{content}{calls}" if not opening else f"{content}{calls}"
    return f"{opening}{thought}\n</think>{layout}{content}{calls}"


def shown(sampled: SampledIds, *, whole: bool) -> tuple[int, ...]:
    return sampled.ids if whole else sampled.ids[sampled.answer_start :]


def place_of(ids: Sequence[int], part: Sequence[int], start: int) -> int:
    """Return the index of part in ids, from start on; -1 if it is not there."""
    part = list(part)
    return next(
        (
            at
            for at in range(start, len(ids) - len(part) + 1)
            if list(ids[at : at + len(part)]) == part
        ),
        -1,
    )


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("keep_thoughts", [False, True])
@settings(max_examples=examples(60), deadline=None)
@given(data=st.data())
def test_shown_spans_stand_unchanged_in_the_next_prompt(
    kind: str, keep_thoughts: bool, data: st.DataObject
) -> None:
    check_conversation(FORMATS[kind], SMALL, keep_thoughts, data)


@pytest.mark.parametrize("kind", ["m1", "m2"])
def test_shown_spans_stand_unchanged_with_the_real_tokenizer(kind: str) -> None:
    tokenizer, straddling, turns = real_tokenizer(), 0, 0

    @settings(max_examples=examples(40), deadline=None, database=None)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        nonlocal straddling, turns
        counts = check_conversation(FORMATS[kind], tokenizer, False, data)
        straddling, turns = straddling + counts[0], turns + counts[1]

    check()
    print(f"{kind}: {straddling} of {turns} dropped boundaries were inside a token")


def check_conversation(
    format: ChatFormat, tokenizer: Tokenizer, keep_thoughts: bool, data: st.DataObject
) -> tuple[int, int]:
    """Holds a random conversation; returns the straddling tokens and the dropped thoughts."""
    transcript = Transcript(format, tokenizer, keep_thoughts=keep_thoughts)
    random_ = random.Random(data.draw(st.integers(0, 2**32)))
    messages: list[Message] = []
    if data.draw(st.booleans()):
        messages.append(Message("system", data.draw(TEXT)))
    num_straddling = num_dropped = 0
    for _ in range(data.draw(st.integers(1, 5))):
        last = messages[-1] if messages else None
        if last is not None and last.role == "assistant" and last.tool_calls:
            messages += [
                Message("tool", data.draw(TEXT), name=call.name) for call in last.tool_calls
            ]
        else:
            messages.append(Message("user", data.draw(TEXT)))
        prompt = transcript.prompt(messages)
        dropped = check_prompt(transcript, messages, prompt.ids)
        num_dropped += dropped
        num_straddling += prompt.num_straddling_tokens
        known = transcript.ids()
        if transcript.turns and not dropped:
            # All that is known comes again, but for the end of a turn that ended in its thought:
            # there the thought is closed first.
            sampled = transcript.turns[-1].reply.sampled
            assert sampled is not None
            if not sampled.is_thinking_closed:
                known = known[: len(known) - transcript.turns[-1].num_answer_ids + len(sampled.ids)]
            assert list(prompt.ids[: len(known)]) == known
            assert prompt.num_reread_tokens == 0
        if not prompt.num_reread_tokens:
            assert prompt.reread_reason is None
        else:
            assert "drops the thoughts" in str(prompt.reread_reason)
        completion = answer(
            format, tokenizer, transcript, messages, raw_text(format, data.draw), random_,
            ends=data.draw(st.booleans()),
        )  # fmt: skip
        transcript.add(messages, completion)
        messages.append(completion.message)
        assert transcript.messages == messages
        assert transcript.ids() == [*completion.prompt_ids, *completion.answer_ids]
    return num_straddling, num_dropped


def check_prompt(transcript: Transcript, messages: Sequence[Message], ids: Sequence[int]) -> int:
    """Each answer's ids stand in the prompt in their order; returns how many thoughts are not."""
    last_user = max(i for i, message in enumerate(messages) if message.role == "user")
    answers = [(i, m) for i, m in enumerate(messages) if m.role == "assistant"]
    at = dropped = 0
    for (index, _), turn in zip(answers, transcript.turns, strict=True):
        sampled = turn.reply.sampled
        assert sampled is not None
        is_whole = (
            transcript.format.name != "minimax_m2" or transcript.keep_thoughts or index > last_user
        )
        part = shown(sampled, whole=is_whole)
        found = place_of(ids, part, at)
        assert found >= 0, (
            transcript.tokenizer.decode(list(part)),
            transcript.tokenizer.decode(list(ids)),
        )
        at = found + len(part)
        dropped += not is_whole
    return dropped


@pytest.mark.parametrize("kind", FORMATS)
def test_a_prompt_reads_as_the_rendered_conversation(kind: str) -> None:
    """Check that the text is the template's own where the model writes the template's layout."""
    format = FORMATS[kind]
    transcript = Transcript(format, SMALL)
    messages: list[Message] = []
    texts = {
        "m1": ["<think>\nHm.\n</think>\nOslo", "<think>\nAgain.\n</think>\nxx"],
        "m2": ["Hm.\n</think>\n\nOslo", "Again.\n</think>\n\nxx"],
        "template": ["Oslo", "xx"],
    }[kind]
    for number, text in enumerate(texts):
        messages.append(Message("user", f"question {number}"))
        completion = answer(format, SMALL, transcript, messages, text, random.Random(number))
        transcript.add(messages, completion)
        messages.append(completion.message)
    messages.append(Message("user", "last"))
    prompt = transcript.prompt(messages)
    assert SMALL.decode(list(prompt.ids)) == format.render(messages)


def test_a_changed_answer_is_rendered_anew_and_the_others_keep_their_ids() -> None:
    format = FORMATS["m1"]
    transcript, messages = Transcript(format, SMALL), list[Message]()
    for number in range(3):
        messages.append(Message("user", f"question {number}"))
        completion = answer(
            format, SMALL, transcript, messages, f"<think>\nno {number}\n</think>\nOslo {number}",
            random.Random(number),
        )  # fmt: skip
        transcript.add(messages, completion)
        messages.append(completion.message)
    messages.append(Message("user", "last"))
    changed = list(messages)
    changed[3] = replace(changed[3], content="Bergen", sampled=None)
    prompt = transcript.prompt(changed)
    assert "changed" in str(prompt.reread_reason)
    assert prompt.num_reread_tokens > 0
    for place in (0, 2):
        sampled = transcript.turns[place].reply.sampled
        assert sampled is not None
        assert place_of(prompt.ids, sampled.ids, 0) >= 0
    middle = transcript.turns[1].reply.sampled
    assert middle is not None
    assert place_of(prompt.ids, middle.ids, 0) < 0
    assert "Bergen" in SMALL.decode(list(prompt.ids))
    # What was said after the change is no longer part of the conversation.
    completion = answer(format, SMALL, transcript, changed, "yes", random.Random(1))
    transcript.add(changed, completion)
    assert len(transcript.turns) == 2
    assert transcript.messages == [*changed, completion.message]


@pytest.mark.parametrize("kind", ["m1", "m2"])
@settings(max_examples=examples(150), deadline=None)
@given(data=st.data())
def test_the_answer_after_a_thought_parses_alone(kind: str, data: st.DataObject) -> None:
    format = FORMATS[kind]
    text = raw_text(format, data.draw)
    place, whole = format.find_thought(text), format.parse(text)
    assert place.is_closed == whole.is_thinking_closed
    assert text[place.start : place.stop].strip("\n") == whole.thinking.strip("\n")
    opening = "</think>" if format.thinking_open_in_prompt else ""
    alone = format.parse(opening + text[place.answer :])
    assert (alone.content, alone.tool_calls) == (whole.content, whole.tool_calls)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=examples(60), deadline=None)
@given(data=st.data())
def test_spans_cover_what_they_say(kind: str, data: st.DataObject) -> None:
    format = FORMATS[kind]
    text = raw_text(format, data.draw)
    ids = SMALL.encode(text)
    sampled = sampled_ids(format, SMALL, ids, SamplingParams(), has_end=False)
    reply = format.parse(text)
    assert sampled.ids == tuple(ids)
    stops = [0]
    for span in sampled.spans:
        assert stops[-1] <= span.start < span.stop <= len(ids)
        stops.append(span.stop)
    texts = {span.kind: SMALL.decode(ids[span.start : span.stop]) for span in sampled.spans}
    assert reply.thinking.strip("\n") in texts.get("thinking", "")
    content = texts.get("content", "")
    assert (sampled.answer_lead + content).count(reply.content.strip()) or not reply.content.strip()
    if reply.tool_calls:
        assert "Oslo" in texts["tool_calls"]
    after = sampled.answer_lead + SMALL.decode(ids[sampled.answer_start :])
    assert after == text[format.find_thought(text).answer :]


def test_a_stop_text_is_no_part_of_the_next_prompt() -> None:
    ids = SMALL.encode("Oslo\n\nOs")
    params = SamplingParams(stop=("\n",))
    sampled = sampled_ids(TEMPLATE, SMALL, ids, params, has_end=True)
    assert SMALL.decode(list(sampled.ids)) + sampled.tail == "Oslo"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_turn_is_read_back_from_its_record(kind: str) -> None:
    format = FORMATS[kind]
    transcript = Transcript(format, SMALL)
    messages = [Message("system", "S"), Message("user", "Hello")]
    text = {"m1": "<think>\na\n</think>\nb", "m2": "a\n</think>\n\nb", "template": "b"}[kind]
    turn = transcript.add(
        messages, answer(format, SMALL, transcript, messages, text, random.Random(1))
    )
    record = json.loads(json.dumps(turn.record()))
    read = read_turn(
        record,
        num_shared=turn.num_shared,
        new_ids=turn.new_ids,
        num_answer_ids=turn.num_answer_ids,
        format=format,
        tokenizer=SMALL,
    )
    assert read == turn
    assert read.reply.sampled == turn.reply.sampled
    old = {**record, "params": {**record["params"], "thinking_landing": 0.1}}
    del old["forced"], old["format"], old["params"]["thinking_soft_end"]
    again = read_turn(old, num_shared=0, new_ids=turn.new_ids, num_answer_ids=turn.num_answer_ids)
    assert again.params == turn.params
    with pytest.raises(ValueError, match="no turn of a conversation"):
        read_turn({**record, "reply": 3}, num_shared=0, new_ids=(1,), num_answer_ids=1)


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_common_ids_are_counted(first: list[int], second: list[int]) -> None:
    count = num_common(first, second)
    assert first[:count] == second[:count]
    assert (
        first[count : count + 1] != second[count : count + 1]
        or not first[count:]
        or not second[count:]
    )


def test_an_answer_changed_to_a_later_one_costs_only_itself() -> None:
    format = FORMATS["m1"]
    transcript, messages = Transcript(format, SMALL), list[Message]()
    for number in range(4):
        messages.append(Message("user", f"question {number}"))
        completion = answer(
            format, SMALL, transcript, messages, f"Oslo {number}", random.Random(number)
        )
        transcript.add(messages, completion)
        messages.append(completion.message)
    edited = [replace(message, sampled=None) for message in messages]
    edited[1] = replace(edited[1], content="Oslo 3")
    known = [m.sampled is not None for m in transcript.with_ids(edited) if m.role == "assistant"]
    assert known == [False, True, True, True]
    left_out = [edited[0], edited[1], *edited[4:]]
    known = [m.sampled is not None for m in transcript.with_ids(left_out) if m.role == "assistant"]
    assert known == [False, True, True]


def test_calls_of_a_history_match_whatever_their_ids() -> None:
    format = FORMATS["m1"]
    transcript = Transcript(format, SMALL)
    messages = [Message("user", "weather?")]
    text = '<tool_calls>\n{"name": "f", "arguments": {"a": 1}}\n</tool_calls>'
    transcript.add(messages, answer(format, SMALL, transcript, messages, text, random.Random(2)))
    reply = transcript.messages[-1]
    other = replace(reply, tool_calls=(ToolCall("f", {"a": 1}, "call_of_a_client"),), sampled=None)
    (_, found) = transcript.with_ids([messages[0], other])
    assert found.sampled == reply.sampled


@pytest.mark.parametrize("name", FORMATS)
def test_a_history_from_elsewhere_is_rendered_in_every_prompt_also_when_it_is_read_back(
    name: str,
) -> None:
    format = FORMATS[name]
    history = [
        Message("system", "Be short."),
        Message("user", "6 times 7?"),
        Message("assistant", "42.", "Six sevens."),
        Message("user", "7 times 8?"),
        Message("user", "Quick."),
        Message("assistant", "56."),
    ]
    asked = [*history, Message("user", "Why so?")]
    expected = Transcript(format, SMALL).prompt(asked).ids
    taken, read_back = Transcript(format, SMALL), Transcript(format, SMALL)
    taken.add_history(history)
    assert [len(turn.messages) for turn in taken.turns] == [2, 2]
    for turn in taken.turns:
        read_back.turns.append(
            read_turn(
                json.loads(json.dumps(turn.record())),
                num_shared=0,
                new_ids=(),
                num_answer_ids=0,
                format=format,
                tokenizer=SMALL,
            )
        )
    for transcript in (taken, read_back):
        assert transcript.messages == history
        assert transcript.ids() == []
        prompt = transcript.prompt(asked)
        assert (prompt.ids, prompt.num_reread_tokens) == (expected, 0)
        assert transcript.recognize(asked) == asked
    with pytest.raises(ValueError, match="of the role user"):
        taken.add_history(asked)
    assert len(taken.turns) == 2
