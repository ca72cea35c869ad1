"""Data: shares of tokens hold, nothing is lost or drawn twice, and cursors are all there is."""

import json
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.envs import load_environment
from fulmen.train import Coder, Example, Mixture, TaskConfig, TaskStream, micro_batches
from fulmen.train.lm.documents import Document, is_held_out
from fulmen.train.lm.mixture import Drawn, shares_of
from fulmen.train.lm.ngrams import CheckConfig, NGrams
from fulmen.train.lm.sources import Source, TextFiles, open_source
from tests.examples import examples
from tests.train.lm_helpers import coder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Coder:
    return coder(tmp_path_factory.mktemp("tokenizer"))


def stream(own: Coder, name: str, config: TaskConfig, **options: Any) -> TaskStream:
    return TaskStream(name, open_source(config, seed=0), own, **options)


def mixture(own: Coder, folder: Path) -> Mixture:
    text = folder / "text.txt"
    text.write_text("".join(f"line {i}: ä {i * i}\n" for i in range(300)), encoding="utf-8")
    return Mixture(
        {
            "copy": stream(own, "copy", TaskConfig(generator="copy", smallest=2, largest=9)),
            "sort": stream(own, "sort", TaskConfig(generator="sort", largest=5)),
            "text": stream(own, "text", TaskConfig(files=(text,), block_bytes=300)),
        }
    )


SHARES = {"copy": 0.2, "sort": 0.5, "text": 0.3}


def test_shares_of_tokens_hold_and_steps_are_nearly_full(own: Coder, tmp_path: Path) -> None:
    mixed = mixture(own, tmp_path)
    counts: Counter[str] = Counter()
    for _ in range(40):
        step = mixed.draw(512, 128, SHARES)
        sizes = [one.example.num_read for one in step]
        assert 512 - 128 < sum(sizes) <= 512
        assert max(sizes) <= 128
        counts.update({one.task: 0 for one in step})
        for one in step:
            counts[one.task] += one.example.num_read
    total = sum(counts.values())
    for task, share in SHARES.items():
        assert counts[task] / total == pytest.approx(share, abs=0.01)
    assert dict(counts) == mixed.drawn


@settings(max_examples=examples(40), deadline=None)
@given(stop=st.integers(0, 8), size=st.integers(128, 700))
def test_a_mixture_goes_on_from_its_cursors(
    own: Coder, stop: int, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("data")
    whole, begun = mixture(own, folder), mixture(own, folder)
    expected = [whole.draw(size, 100, SHARES) for _ in range(9)]
    for _ in range(stop):
        begun.draw(size, 100, SHARES)
    resumed = mixture(own, folder)
    resumed.load_state(json.loads(json.dumps(begun.state())))
    assert [resumed.draw(size, 100, SHARES) for _ in range(9 - stop)] == expected[stop:]


def test_an_epoch_of_text_is_every_token_once_whatever_the_length(
    own: Coder, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("äöü\n" * 50 + "x" * 700, encoding="utf-8")  # also a line longer than a block
    config = TaskConfig(files=(text,), block_bytes=256)
    for length in (7, 64, 1000):
        found = stream(own, "text", config)
        count = open_source(config, 0).num_documents
        assert count is not None
        learnt = b""
        while (example := found.peek(length)) and found.state()["index"] < count:
            assert 1 <= example.num_read <= length
            ids = [token_id for token_id in example.ids[1:] if token_id != own.end_id]
            learnt += b"".join(map(own.tokenizer.token_bytes, ids))
            found.take(example)
        assert Counter(learnt) == Counter(text.read_bytes())


def test_other_shares_begin_anew_and_are_not_made_up_for(own: Coder, tmp_path: Path) -> None:
    mixed = mixture(own, tmp_path)
    for _ in range(20):
        mixed.draw(512, 128, {"copy": 0.9, "text": 0.1})
    resumed = mixture(own, tmp_path)
    resumed.load_state(json.loads(json.dumps(mixed.state())))
    shares = {"copy": 0.3, "sort": 0.7}  # sort was never drawn
    step = resumed.draw(2048, 128, shares)
    sizes = Counter({each.task: 0 for each in step})
    for each in step:
        sizes[each.task] += each.example.num_read
    assert sizes["copy"] / sum(sizes.values()) == pytest.approx(0.3, abs=0.05)


def test_only_a_files_first_block_begins_a_text_and_only_its_last_one_ends_it(
    own: Coder, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one line\n" * 60 + "ä" * 200, encoding="utf-8")
    source = open_source(TaskConfig(files=(text,), block_bytes=256), 0)
    assert isinstance(source, TextFiles)
    assert source.num_documents == 5
    bos = own.tokenizer.bos_token_id
    found = [source.document(index).encode(own)[0] for index in range(5)]
    assert [example.ids[0] == bos for example in found] == [True, *[False] * 4]
    assert [example.ids[-1] == own.end_id for example in found] == [*[False] * 4, True]
    for before, after in pairwise(found):
        assert after.ids[0] == before.ids[-1]  # so the first token of a block is learnt too
    assert source.block_tokens(own) == 256
    whole = open_source(TaskConfig(files=(text,)), 0)
    assert isinstance(whole, TextFiles)
    assert whole.block_tokens(own) is None


def test_a_source_has_another_fingerprint_when_its_bytes_change(tmp_path: Path) -> None:
    for name, line in (("a.txt", "abc"), ("a.jsonl", '{"text": "abc"}')):
        file = tmp_path / name
        found = set()
        for content in (line, f"{line}\n", line.replace("b", "xyz"), line):
            file.write_text(content)
            found.add(open_source(TaskConfig(files=(file,)), 0).fingerprint)
        assert len(found) == 3


def test_each_epoch_is_all_documents_in_an_order_of_its_own(own: Coder, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{i}", "completion": f"{i}!"} for i in range(20)]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    config = TaskConfig(files=(file,), style="plain")
    found = stream(own, "rows", config)
    order = []
    for _ in range(40):
        example = found.peek(64)
        order.append(own.tokenizer.decode(list(example.ids[1 : example.targets[0]])))
        found.take(example)
    first, second = order[:20], order[20:]
    assert sorted(first) == sorted(second) == sorted(map(str, range(20)))
    assert first != second


def test_held_out_documents_are_never_drawn(own: Coder) -> None:
    config = TaskConfig(generator="copy", smallest=1, largest=1, style="plain")  # 36 problems
    found = stream(own, "copy", config, held_out=0.3)
    held = {document.key for document in found.held_out_documents(100)}
    assert 4 < len(held) < 20
    for _ in range(200):
        example = found.peek(64)
        prompt = own.tokenizer.decode(list(example.ids[1 : example.targets[0]]))
        assert prompt.removesuffix("\n") not in held
        found.take(example)
    assert all(is_held_out(key, 0.3) for key in held)
    assert is_held_out("a", 1.0) is True
    assert is_held_out("a", 0.0) is False


class Counting(Source):
    """A source that counts what is asked of it."""

    num_documents = 10**9

    def __init__(self) -> None:
        self.num_asked = 0

    def document(self, index: int) -> Document:
        self.num_asked += 1
        return Document(f"document {index}", lambda coder: coder.text("a"))


def test_held_out_documents_are_looked_for_within_bounds(
    own: Coder, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Counting()
    assert TaskStream("a", source, own, held_out=0.0).held_out_documents(10) == []
    assert source.num_asked == 0
    monkeypatch.setattr("fulmen.train.lm.mixture._MAX_LOOKED_AT", 50)
    assert TaskStream("a", source, own, held_out=1e-9).held_out_documents(10) == []
    assert source.num_asked == 50


def test_a_line_without_end_is_one_sentence_and_is_never_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("sources", "documents", "ngrams"):
        monkeypatch.setattr(f"fulmen.train.lm.{room}.LONGEST_LINE", 2**20)
    for name in ("a.jsonl", "a.txt"):
        file = tmp_path / name
        with file.open("wb") as opened:
            opened.truncate(300 * 2**20)  # zeros, which take no room
        tracemalloc.start()
        with pytest.raises(ValueError, match=rf"{name}.* has more than 1,048,576 bytes"):
            NGrams.of(CheckConfig(files=(file,)))
        if name == "a.jsonl":
            with pytest.raises(ValueError, match=r"a\.jsonl, line 1 has more than 1,048,576 bytes"):
                open_source(TaskConfig(files=(file,)), 0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16 * 2**20


def test_conversations_that_are_too_long_are_left_out_and_counted(own: Coder) -> None:
    config = TaskConfig(generator="copy", smallest=1, largest=30, style="plain")
    found = stream(own, "copy", config)
    for _ in range(20):
        example = found.peek(30)
        assert example.num_read <= 30
        found.take(example)
    assert found.num_too_long > 0
    with pytest.raises(ValueError, match=r"^task copy has no document of at most 3 tokens that is"):
        stream(own, "copy", config).peek(3)


@pytest.mark.parametrize(
    ("weights", "floor", "shares"),
    [
        ({}, 0.1, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
        ({"a": 3, "b": 1}, 0.0, {"a": 0.75, "b": 0.25}),
        ({"a": 3, "b": 1}, 0.1, {"a": 0.675, "b": 0.225, "c": 0.1}),
        ({"a": 98, "b": 1, "c": 1}, 0.05, {"a": 0.9, "b": 0.05, "c": 0.05}),
        ({"a": 1}, 0.2, {"a": 0.6, "b": 0.2, "c": 0.2}),
    ],
)
def test_every_task_has_the_floor(
    weights: dict[str, float], floor: float, shares: dict[str, float]
) -> None:
    assert shares_of(weights, ("a", "b", "c"), floor) == pytest.approx(shares)


@settings(max_examples=examples(200), deadline=None)
@given(
    weights=st.dictionaries(st.sampled_from("abcde"), st.floats(0, 100), max_size=5),
    floor=st.floats(0, 0.2),
)
def test_shares_add_up_to_one_and_stay_above_the_floor(
    weights: dict[str, float], floor: float
) -> None:
    if weights and not sum(weights.values()):
        return
    shares = shares_of(weights, tuple("abcde"), floor)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(shares.get(name, 0.0) >= floor * (1 - 1e-9) for name in "abcde")


@pytest.mark.parametrize(
    ("weights", "floor", "sentence"),
    [
        ({"d": 1}, 0.0, "d is no task, there are a, b, c"),
        ({"a": -1}, 0.0, "a is -1, a weight must be 0 or more"),
        ({"a": 0}, 0.0, "all weights are 0, at least one must be more"),
        ({}, 0.5, "floor is 0.5, 3 tasks can have at most 0.333 each"),
    ],
)
def test_shares_that_cannot_be_are_refused(
    weights: dict[str, float], floor: float, sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        shares_of(weights, ("a", "b", "c"), floor)


@settings(max_examples=examples(100), deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    limits=st.tuples(st.integers(1, 100), st.none() | st.integers(1, 60)),
)
def test_micro_batches_hold_every_target_once_in_groups_that_do_not_depend_on_them(
    sizes: list[int], limits: tuple[int, int]
) -> None:
    drawn = [
        Drawn("t", Example(tuple(range(100 * i, 100 * i + size + 1)), range(1, size + 1, 2)))
        for i, size in enumerate(sizes)
    ]
    max_tokens, group_tokens = limits
    batches = list(micro_batches(drawn, max_tokens, group_tokens))
    pairs = []
    for batch in batches:
        assert batch.packed.logits_indices is not None
        before = batch.packed.input_ids[batch.packed.logits_indices]
        assert torch.equal(before + 1, batch.targets)
        pairs += batch.targets.tolist()
        assert batch.num_tokens <= max(max_tokens, group_tokens or 0, max(sizes))
    assert pairs == [one.example.ids[i] for one in drawn for i in one.example.targets]

    def group_sizes(limit: int) -> list[int]:
        found = micro_batches(drawn, limit, group_tokens)
        return [stop - start for batch in found for start, stop in batch.groups]

    assert group_sizes(max_tokens) == group_sizes(10**6)


def rows(folder: Path, *lines: str) -> Source:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(lines))
    return open_source(TaskConfig(files=(file,)), 0)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", r"rows\.jsonl, line 2 is not JSON: "),
        ("3", r"line 2 is no object, it must have text, prompt and completion, or messages"),
        ('{"txt": "a"}', "line 2 must have text, or prompt and completion, or messages, found txt"),
        ('{"messages": "a"}', "line 2 must have text, .* found messages"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 2: the conversation has no"),
        (
            '{"messages": [{"role": "assistant", "content": "a"}], "tools": 3}',
            "line 2: tools is of type int, it must be a list",
        ),
        ('{"prompt": "", "completion": "a", "text": null}', None),
    ],
)
def test_a_row_that_cannot_be_learnt_is_one_sentence_with_its_place(
    own: Coder, tmp_path: Path, line: str, sentence: str | None
) -> None:
    if sentence is None:
        assert rows(tmp_path, '{"text": "a"}', line).document(1).encode(own)
        return
    with pytest.raises(ValueError, match=sentence):
        rows(tmp_path, '{"text": "a"}', line).document(1).encode(own)


@pytest.mark.parametrize("line", ["{", "3", '{"txt": "a"}', '{"text": "\xff"}'])
def test_a_file_with_a_line_that_is_no_document_is_refused_when_it_is_opened(
    tmp_path: Path, line: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "a"}\n' + line.encode("latin-1"))
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 "):
        open_source(TaskConfig(files=(file,)), 0)


def test_a_completion_of_messages_is_learnt_and_the_prompt_before_it_read(
    own: Coder, tmp_path: Path
) -> None:
    talk = [("user", "One?"), ("assistant", "Wrong."), ("user", "Two?"), ("assistant", "Right.")]
    messages = [{"role": role, "content": text} for role, text in talk]
    row = {"prompt": messages[:3], "completion": messages[3:]}
    document = rows(tmp_path, json.dumps(row)).document(0)
    assert (document.key, document.said) == ("One?\nTwo?", "Wrong.\nRight.")
    (example,) = document.encode(own)
    learnt = own.tokenizer.decode([example.ids[target] for target in example.targets])
    assert "Right." in learnt
    assert "Wrong." not in learnt
    assert "Wrong." in own.tokenizer.decode(list(example.ids))


def test_files_that_are_missing_empty_or_of_two_kinds_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.txt is missing, a file or a folder of text"):
        open_source(TaskConfig(files=(tmp_path / "x.txt",)), 0)
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match=r"x\.txt has no documents, it is empty$"):
        open_source(TaskConfig(files=(tmp_path / "x.txt",)), 0)
    (tmp_path / "y.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"^files are of two kinds, "):
        open_source(TaskConfig(files=(tmp_path,)), 0)
    (tmp_path / "x.txt").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"x\.txt is not UTF-8"):
        open_source(TaskConfig(files=(tmp_path / "x.txt",)), 0)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "generator, environment, files or dataset must be given, found none of them"),
        ({"generator": "add", "dataset": "a"}, "found generator and dataset"),
        ({"generator": "divide"}, "generator is divide, it must be one of copy, "),
        ({"generator": "add", "largest": 0}, "smallest and largest are 1 and 0, "),
        ({"generator": "add", "subset": "a"}, "subset is a, it needs dataset, found generator"),
        ({"files": (Path("a"),), "split": "b"}, "split is b, it needs dataset, found files"),
        ({"files": (Path("a"),), "largest": 9}, "largest is 9, it needs generator, found files"),
        ({"dataset": "a", "block_bytes": 999}, "block_bytes is 999, it needs files, found dataset"),
        ({"generator": "add", "dataset": ""}, "found generator and dataset"),
    ],
)
def test_a_task_that_cannot_be_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TaskConfig(**fields)


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("a.txt", {"style": "plain"}, r"^style is plain, it needs JSONL, see files$"),
        ("a.jsonl", {"block_bytes": 999}, r"^block_bytes is 999, it needs text files, see files$"),
    ],
)
def test_an_option_for_files_of_another_kind_is_refused(
    tmp_path: Path, name: str, fields: dict[str, Any], sentence: str
) -> None:
    (tmp_path / name).write_text('{"text": "a"}')
    with pytest.raises(ValueError, match=sentence):
        open_source(TaskConfig(files=(tmp_path,), **fields), 0)


def test_a_hub_data_set_without_its_library_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fulmen.train.lm.sources.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"^dataset is a/b, which needs the library datasets: `pip"
    ):
        open_source(TaskConfig(dataset="a/b"), 0)


def test_a_hub_data_set_is_read_by_rows(own: Coder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, subset: str | None, split: str) -> list[dict[str, str]]:
        asked.append((name, subset, split))
        if name == "none":
            raise FileNotFoundError("no such data set\nand more")
        return [{"text": "ab"}, {"prompt": "a", "answer": "b"}]

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr("fulmen.train.lm.sources.find_spec", lambda name: object())
    config = TaskConfig(dataset="a/b", subset="main", split="test")
    source = open_source(config, 0)
    assert source.num_documents == 2
    assert source.document(0).key == "ab"
    assert source.document(1).encode(own)
    assert asked == [("a/b", "main", "test")]
    with pytest.raises(ValueError, match=r"^dataset none cannot be read: no such data set$"):
        open_source(replace(config, dataset="none"), 0)


def test_of_a_demonstration_the_answers_are_learnt_and_the_rest_is_read(own: Coder) -> None:
    known = own.tokenizer.decode
    source = open_source(TaskConfig(environment="arithmetic"), seed=4)
    (example,) = source.document(7).encode(own)
    task = load_environment("arithmetic", seed=4).task(7)
    said = known([example.ids[place] for place in example.targets])
    assert task.known_answers[0].content in said
    assert task.messages[0].content in known(example.ids)
    assert task.messages[0].content not in said

    (example,) = open_source(TaskConfig(environment="tools:1:shop"), seed=4).document(7).encode(own)
    said = known([example.ids[place] for place in example.targets])
    call, answer = load_environment("tools:1:shop", seed=4).task(7).known_answers
    assert call.tool_calls[0].name in said
    assert answer.content in said
    assert '"status"' in known(example.ids)  # of the tool's result
    assert '"status"' not in said


def test_an_environment_has_demonstrations_or_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonsense is no environment"):
        open_source(TaskConfig(environment="nonsense"), seed=0)
    with pytest.raises(ValueError, match="style is plain"):
        TaskConfig(environment="arithmetic", style="plain")


def test_a_conversation_asks_questions_one_after_another(own: Coder) -> None:
    source = open_source(TaskConfig(environment="arithmetic", questions=4), seed=4)
    counts = set()
    for index in range(20):
        document = source.document(index)
        assert document == replace(source.document(index), encode=document.encode)
        (example,) = document.encode(own)
        whole = own.tokenizer.decode(example.ids)
        said = own.tokenizer.decode([example.ids[place] for place in example.targets])
        questions, answers = document.key.split("\n"), document.said.split("\n")
        counts.add(len(questions))
        assert whole.count("name=user") == len(set(questions)) == len(answers)
        assert "name=user" not in said
        assert all(answer in said for answer in answers)
    assert counts == {2, 3, 4}


def test_no_question_of_a_finite_environment_is_in_two_conversations(tmp_path: Path) -> None:
    rows = [f'{{"question": "what is {n}?", "answer": "it is {n} #### {n}"}}' for n in range(20)]
    (tmp_path / "q.jsonl").write_text("\n".join(rows))
    config = TaskConfig(environment=str(tmp_path / "q.jsonl"), questions=3)
    source = open_source(config, seed=1)
    assert source.num_documents == 6
    asked = [one for index in range(6) for one in source.document(index).key.split("\n")]
    assert len(asked) == len(set(asked)) > 12
    (tmp_path / "q.jsonl").write_text("\n".join(rows[:2]))
    with pytest.raises(ValueError, match=r"^questions is 3, .*q\.jsonl has only 2$"):
        open_source(config, seed=1)


def test_a_conversation_needs_questions() -> None:
    with pytest.raises(ValueError, match=r"^questions is 2, which needs tasks that are questions"):
        open_source(TaskConfig(environment="tools:1:shop", questions=2), seed=0)
    with pytest.raises(ValueError, match=r"^questions is 2, it needs environment"):
        TaskConfig(generator="add", questions=2)
    with pytest.raises(ValueError, match=r"^questions is 0, it must be from 1 to 1000$"):
        TaskConfig(environment="arithmetic", questions=0)


def test_a_thought_is_cut_as_a_budget_cuts_it_and_only_the_answer_is_learnt(own: Coder) -> None:
    config = TaskConfig(environment="basics:add")
    whole, cut = (open_source(replace(config, cut_thoughts=share), seed=4) for share in (0.0, 1.0))
    assert own.format is not None
    assert own.format.thinking is not None
    tags = own.format.thinking
    closings = [
        own.tokenizer.encode(f"{phrase}{tags.forced_end}")
        for phrase in ("", f"\n\n{tags.last_phrase}")
    ]
    opening = own.tokenizer.encode(tags.forced_start)
    lengths, phrases = set(), set()
    for index in range(30):
        (full,) = whole.document(index).encode(own)
        (short,) = cut.document(index).encode(own)
        assert [short] == cut.document(index).encode(own)
        answer = [short.ids[place] for place in short.targets]
        assert answer == list(full.ids[-len(answer) :])
        task = load_environment("basics:add", seed=4).task(index)
        assert task.known_answers[0].content in own.tokenizer.decode(answer)
        head = list(short.ids[: short.targets[0]])
        closing = next(one for one in closings[::-1] if head[-len(one) :] == one)
        thought = head[full.targets[0] : len(head) - len(closing)]
        assert thought[: len(opening)] == opening
        assert head[: len(head) - len(closing)] == list(full.ids[: len(head) - len(closing)])
        lengths.add(len(thought) - len(opening))
        phrases.add(len(closing))
    assert len(lengths) > 5
    assert len(phrases) == 2


def test_only_a_share_of_the_thoughts_is_cut(own: Coder) -> None:
    whole, some = (
        open_source(TaskConfig(environment="basics:add", cut_thoughts=share), seed=4)
        for share in (0.0, 0.3)
    )
    differ = [whole.document(i).encode(own) != some.document(i).encode(own) for i in range(200)]
    assert 40 <= sum(differ) <= 80
    with pytest.raises(ValueError, match=r"^cut_thoughts is 2, it must be from 0 to 1$"):
        TaskConfig(environment="arithmetic", cut_thoughts=2)
    with pytest.raises(ValueError, match=r"^cut_thoughts is 0.1, it needs single questions"):
        TaskConfig(environment="arithmetic", cut_thoughts=0.1, questions=2)
    with pytest.raises(ValueError, match=r"^cut_thoughts is 0.1, it needs environment"):
        TaskConfig(generator="add", cut_thoughts=0.1)
