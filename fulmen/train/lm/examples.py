"""Examples: token ids, and which of them a loss asks for.

    text          -> its ids, all of them targets
    prompt        -> ids that are only read; an answer's ids are targets
    conversation  -> the ids that the engine would read and sample; targets are the assistant's

A conversation is encoded as it is at inference: each answer apart from the prompt before it, so
that no token spans both, and with the thoughts of earlier questions left out where the format
leaves them out. Where that hides a thought, a conversation becomes several examples, each with the
answers whose thoughts it shows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from fulmen.chat import (
    ChatFormat,
    Control,
    Ids,
    Message,
    SampledIds,
    Segment,
    TemplateFormat,
    Tokenizer,
    Tool,
    read_messages,
    read_tools,
    sampled_ids,
)
from fulmen.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Example:
    """Ids of one sequence. A model reads all but the last; `targets` are what it learns to say."""

    ids: tuple[int, ...]
    targets: tuple[int, ...] | range
    """Indices of ids that are predicted from those before them, each 1 or more, in order"""
    can_be_cut: bool = False
    """True for plain text, whose pieces are examples too"""

    @property
    def num_read(self) -> int:
        """Number of tokens that the model reads."""
        return len(self.ids) - 1


@dataclass(frozen=True, slots=True)
class Coder:
    """Encoder of texts and conversations for one model."""

    tokenizer: Tokenizer
    format: ChatFormat | None
    """None for a model that holds no conversations"""

    @property
    def end_id(self) -> int:
        """Id that ends a text or an answer."""
        own = None if self.format is None else self.tokenizer.token_id(self.format.end_of_turn)
        for token_id in (*self.tokenizer.eos_token_ids, own):
            if token_id is not None:
                return token_id
        raise ValueError(
            "the tokenizer names no token that ends a text, eos_token in tokenizer_config.json does"
        )

    def text(self, text: str, *, before: str = "", has_end: bool = True) -> list[Example]:
        """Return a text as one example: it is read from its start, and its end is learnt too.

        before   text that it goes on from; its last token takes the place of the start
        has_end  False where the text goes on behind
        """
        bos = self.tokenizer.bos_token_id
        start = self.tokenizer.encode_plain(before)[-1:] or [self.end_id if bos is None else bos]
        end = [self.end_id] if has_end else []
        ids = (*start, *self.tokenizer.encode_plain(text), *end)
        return [Example(ids, range(1, len(ids)), can_be_cut=True)]

    def pair(self, prompt: str, answer: str) -> list[Example]:
        """Return a prompt and its answer without any format; only the answer is learnt."""
        bos = self.tokenizer.bos_token_id
        before = [] if bos is None else [bos]
        before += self.tokenizer.encode_plain(prompt)
        if not before:
            raise ValueError("the prompt is empty, at least one token is needed")
        ids = (*before, *self.tokenizer.encode_plain(answer), self.end_id)
        return [Example(ids, range(len(before), len(ids)))]

    def conversation(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        tools: Iterable[Tool | Mapping[str, Any]] = (),
    ) -> list[Example]:
        """Return a conversation as examples whose targets are the assistant's answers, ends of
        turns included. An answer given with `"weight": 0` is read and not learnt.

        Raises ValueError for one that cannot be read, or has no answer to learn.
        """
        format = self._known_format
        if self.tokenizer.token_id(format.end_of_turn) is None:
            raise ValueError(
                f"the tokenizer has no token {format.end_of_turn}, which ends turns in the format "
                f"{format.name}"
            )
        given = list(messages)
        is_learnt = [
            isinstance(one, Message) or _weight_of(one) > 0
            for one in given
            if (one.role if isinstance(one, Message) else one.get("role")) == "assistant"
        ]
        plain = [one if isinstance(one, Message) else _without_weight(one) for one in given]
        read, known_tools = read_messages(plain), read_tools(tools)
        places = [index for index, one in enumerate(read) if one.role == "assistant"]
        learnt = {place for place, flag in zip(places, is_learnt, strict=True) if flag}
        if not learnt:
            raise ValueError("the conversation has no answer of the assistant to learn")
        answers = {
            place: self._answer_ids(read[:place], read[place], known_tools)
            for place in places
            if read[place].sampled is None or isinstance(format, TemplateFormat)
        }
        if isinstance(format, TemplateFormat):
            return [
                _joined(
                    format.encode(read[:place], known_tools, tokenizer=self.tokenizer),
                    answers[place],
                )
                for place in sorted(learnt)
            ]
        own = list(read)
        shown = format.shows_thoughts(read)
        for place, ids in answers.items():
            if shown[place]:  # nothing of it is left out, so nobody asks where its thought ends
                sampled = SampledIds(tuple(ids[:-1]), (), 0)
            else:
                sampled = sampled_ids(format, self.tokenizer, ids, _ANY, has_end=True)
            own[place] = replace(read[place], sampled=sampled)
        examples: list[Example] = []
        missing = set(learnt)
        while missing:
            end = max(missing) + 1
            shown = format.shows_thoughts(own[:end])
            here = {place for place in missing if shown[place]} if format.thinking else missing
            if end - 1 not in here:
                raise ValueError("an answer cannot be learnt, the format does not show it whole")
            examples.append(self._rendered(own[:end], known_tools, here))
            missing = missing - here
        return examples[::-1]

    def cut(self, example: Example, draw: Random) -> Example:
        """Return an example of one answer whose thought is cut at a random token, as a thinking
        budget cuts it; only what is answered then is learnt. One without a thought stays."""
        tags = self._known_format.thinking
        if tags is None:
            return example
        start, stop = example.targets[0], example.targets[-1] + 1
        said = list(example.ids[start:stop])
        opening = self.tokenizer.encode(tags.forced_start)
        ending = self.tokenizer.encode(tags.forced_end)
        if said[: len(opening)] != opening or (end := _find(ending, said)) is None:
            return example
        place = start + draw.randint(len(opening), end)
        has_phrase = draw.random() < 0.5  # a budget has room for it, or not
        closing = f"\n\n{tags.last_phrase}{tags.forced_end}" if has_phrase else tags.forced_end
        head = (*example.ids[:place], *self.tokenizer.encode(closing))
        answer = example.ids[start + end + len(ending) : stop]
        targets = range(len(head), len(head) + len(answer))
        return Example((*head, *answer), targets)

    @property
    def _known_format(self) -> ChatFormat:
        if self.format is None:
            raise ValueError("the model has no chat format, conversations cannot be learnt")
        return self.format

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Tool], learnt: set[int]
    ) -> Example:
        """Return the example of messages whose answers carry their ids."""
        format = self._known_format
        segments = format.segments(messages, tools, add_generation_prompt=False)
        order = iter(index for index, one in enumerate(messages) if one.role == "assistant")
        ids: list[int] = []
        targets: list[int] = []
        text: list[Segment] = []
        is_ended = True
        """False after ids that are learnt, until the end of their turn, which is learnt too"""
        for segment in segments:
            if isinstance(segment, Ids):
                ids += self.tokenizer.encode_segments(text)
                text = []
                if next(order) in learnt:
                    targets += range(len(ids), len(ids) + len(segment.ids))
                    is_ended = False
                ids += segment.ids
            elif (
                isinstance(segment, Control) and segment.text == format.end_of_turn and not is_ended
            ):
                ids += self.tokenizer.encode_segments(text)
                text, is_ended = [], True
                end = self.tokenizer.encode_segments([segment])
                targets += range(len(ids), len(ids) + len(end))
                ids += end
            elif segment != "":
                text.append(segment)
        # What follows the last answer's end is layout that nobody asks the model for.
        return Example(tuple(ids), tuple(targets))

    def _answer_ids(
        self, before: Sequence[Message], message: Message, tools: Sequence[Tool]
    ) -> list[int]:
        """Return the ids that the model would sample after a prompt to say this message, the end
        of the turn included."""
        format = self._known_format
        if message.sampled is not None:
            return [*message.sampled.ids, self.end_id]
        prompt = _text(format.segments(before, tools))
        segments = format.segments([*before, message], tools, add_generation_prompt=False)
        text = _text(segments)
        lead: list[Segment] = []
        if not text.startswith(prompt):
            if format.thinking is None or not format.thinking.is_open_in_prompt:
                raise ValueError(
                    "an answer does not begin where its prompt ends, this chat template cannot be "
                    "learnt from conversations"
                )
            # The prompt opens a thought that the message has not: it closes at once.
            prompt = prompt[: prompt.rindex(format.thinking.again)]
            start, tag, rest = format.thinking.forced_end.partition(format.thinking.end)
            lead = [start, Control(tag), rest]
        said = _after(segments, len(prompt))
        if isinstance(format, TemplateFormat):
            (whole,) = said or [""]
            answer = str(whole)
            if format.end_of_turn and format.end_of_turn in answer:
                answer = answer[: answer.rindex(format.end_of_turn)]
            return [*self.tokenizer.encode(answer), self.end_id]
        ends = [
            index
            for index, one in enumerate(said)
            if isinstance(one, Control) and one.text == format.end_of_turn
        ]
        return self.tokenizer.encode_segments([*lead, *said[: ends[-1] + 1]])


_ANY: Final = SamplingParams()
"""Sampling without stop texts"""


def _find(wanted: Sequence[int], ids: Sequence[int]) -> int | None:
    """Return the place of the first ids that are the wanted ones; None if there are none."""
    size = len(wanted)
    places = range(len(ids) - size + 1)
    return next((at for at in places if list(ids[at : at + size]) == list(wanted)), None)


def _joined(before: Sequence[int], answer: Sequence[int]) -> Example:
    ids = (*before, *answer)
    return Example(ids, range(len(before), len(ids)))


def _weight_of(message: Mapping[str, Any]) -> float:
    weight = message.get("weight", 1)
    if weight not in (0, 1):
        raise ValueError(f"the weight of a message is {str(weight)[:40]}, it must be 0 or 1")
    return float(weight)


def _without_weight(message: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: value for key, value in message.items() if key != "weight"}


def _text(segments: Iterable[Segment]) -> str:
    return "".join(map(str, segments))


def _after(segments: Iterable[Segment], num_characters: int) -> list[Segment]:
    """Return segments without their first characters."""
    found: list[Segment] = []
    for segment in segments:
        length = len(str(segment))
        if num_characters >= length:
            num_characters -= length
        elif num_characters:
            found.append(str(segment)[num_characters:])
            num_characters = 0
        else:
            found.append(segment)
    return found
