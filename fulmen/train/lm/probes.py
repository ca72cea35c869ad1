"""Probes: what a model in training says to documents it never saw, and how likely it finds them.

Prompts are answered by the engine in this process, on a copy of the weights, greedily. An answer is
right if it is the document's own, after the thought. Documents without a checkable answer have only
their loss.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch

from fulmen.engine import Engine, EngineConfig, RequestFailed
from fulmen.models import Model
from fulmen.sampling import SamplingParams
from fulmen.train.lm.config import ProbeConfig
from fulmen.train.lm.examples import Coder, Example
from fulmen.train.lm.mixture import Drawn, TaskStream, micro_batches
from fulmen.train.lm.procedural import Problem
from fulmen.train.lm.sources import TaskConfig

_MAX_NUM_SEQS = 64
_PAGE = 64
"""Tokens of a page of the engine's cache"""


class Question(NamedTuple):
    """A held-out prompt and its known answer."""

    task: str
    prompt_ids: tuple[int, ...]
    problem: Problem
    is_plain: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """An answer for the log."""

    task: str
    prompt: str
    said: str
    answer: str
    is_right: bool


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Scores of each task: `loss` in nats a target, `right` as a share where answers are known,
    and the number of documents that were read."""

    tasks: Mapping[str, Mapping[str, float]]
    samples: Sequence[Sample]


class Prober:
    """Prober with the held-out documents of every task, the same ones each time."""

    def __init__(
        self,
        streams: Mapping[str, TaskStream],
        tasks: Mapping[str, TaskConfig],
        coder: Coder,
        config: ProbeConfig,
        length: int,
    ) -> None:
        """length  most tokens of a document that are read"""
        self._config, self._coder = config, coder
        self._examples: dict[str, list[Example]] = {}
        self._num_documents: dict[str, int] = {}
        self._questions: list[Question] = []
        for name, stream in streams.items():
            documents = stream.held_out_documents(config.documents) if config.documents else []
            encoded = [document.encode(coder) for document in documents]
            read = [
                [_cut(one, length) for one in each if one.can_be_cut or one.num_read <= length]
                for each in encoded
            ]
            self._examples[name] = list(chain.from_iterable(read))
            self._num_documents[name] = sum(map(bool, read))
            for document, examples in zip(documents, encoded, strict=True):
                if document.problem is None or examples[0].num_read > length:
                    continue
                prompt_ids = examples[0].ids[: examples[0].targets[0]]
                if len(prompt_ids) < length:  # an answer has at least one token
                    is_plain = tasks[name].style == "plain"
                    self._questions.append(Question(name, prompt_ids, document.problem, is_plain))

    def run(self, model: Model) -> ProbeResult:
        """Probe a model that is in training; it stays as it is."""
        found: dict[str, dict[str, float]] = {
            name: {"documents": count} for name, count in self._num_documents.items()
        }
        own = copy.deepcopy(model).eval()
        for name, examples in self._examples.items():
            if examples:
                found[name]["loss"] = held_out_loss(own, name, examples)
        own.pack()
        rights: dict[str, list[bool]] = {}
        samples: list[Sample] = []
        for question, ids in zip(self._questions, self._answers(own), strict=True):
            said = self._coder.tokenizer.decode(ids, skip_special_tokens=True)
            is_right = self._final(ids, question) == question.problem.answer.strip()
            rights.setdefault(question.task, []).append(is_right)
            if len(rights[question.task]) <= self._config.samples:
                problem = question.problem
                samples.append(
                    Sample(question.task, problem.prompt, said, problem.answer, is_right)
                )
        for name, flags in rights.items():
            found[name]["right"] = sum(flags) / len(flags)
        return ProbeResult(found, samples)

    def _answers(self, model: Model) -> list[list[int]]:
        """Return the ids of the answer to each question, without the id that ended it."""
        if not self._questions:
            return []
        longest = max(len(question.prompt_ids) for question in self._questions)
        context = model.config.max_position_embeddings
        max_model_len = min(longest + self._config.max_tokens + 1, context)
        pages = _MAX_NUM_SEQS * (-(-max_model_len // _PAGE) + 1)
        engine = Engine(
            model,
            EngineConfig(
                max_num_seqs=_MAX_NUM_SEQS,
                max_token_gap_seconds=None,
                max_model_len=max_model_len,
                kv_cache_bytes=max(model.page_bytes() * pages, 1),
                snapshot_bytes=0,
            ),
            eos_token_ids=sorted({self._coder.end_id, *self._coder.tokenizer.eos_token_ids}),
        )
        answers: dict[int, list[int]] = {}
        for question in self._questions:
            room = max_model_len - len(question.prompt_ids)
            params = SamplingParams(
                temperature=0.0,
                top_p=1.0,
                top_k=None,
                max_tokens=max(min(self._config.max_tokens, room), 1),
            )
            answers[engine.add_request(question.prompt_ids, params)] = []
        while engine.has_unfinished:
            for output in engine.step():
                if isinstance(output, RequestFailed):
                    raise output.error
                if output.finish_reason != "stop":
                    answers[output.request_id].append(output.token_id)
        return list(answers.values())

    def _final(self, ids: Sequence[int], question: Question) -> str:
        """Return the answer that a completion ends with, after its thought: in plain text its last
        line, where the known answer has a trace before it."""
        text = self._coder.tokenizer.decode(ids)
        if not question.is_plain and self._coder.format is not None:
            text = self._coder.format.parse(text).content
        elif question.problem.trace:
            text = text.strip().rpartition("\n")[2]
        return text.strip()


@torch.no_grad()
def held_out_loss(model: Model, task: str, examples: Iterable[Example]) -> float:
    """Return the mean negative log-probability of the targets of examples, in nats."""
    total = 0.0
    count = 0
    sequences = [Drawn(task, example) for example in examples]
    for batch in micro_batches(sequences, 8192):
        total -= float(model.target_logprobs(batch.packed, batch.targets).double().sum())
        count += len(batch.targets)
    return total / max(count, 1)


def _cut(example: Example, length: int) -> Example:
    if example.num_read <= length:
        return example
    ids = example.ids[: length + 1]
    return Example(ids, range(1, len(ids)), can_be_cut=True)
