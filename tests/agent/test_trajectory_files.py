"""Trajectories as files: lines are read back equal, ATIF keeps its rules, a page is inert."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fulmen.agent import (
    PROFILES,
    Answer,
    Compaction,
    EndReason,
    Result,
    Sampled,
    Score,
    Step,
    Trajectory,
    read_trajectories,
    to_atif,
    view,
    write_trajectories,
)
from fulmen.chat import (
    Completion,
    Message,
    Reply,
    Token,
    Tokenizer,
    ToolCall,
    Usage,
    read_messages,
)
from fulmen.sampling import SamplingParams
from tests.examples import examples
from tests.tiny import write_checkpoint

TEXTS = st.text(max_size=30) | st.sampled_from(
    ["</pre><script>alert(1)</script>", "\x1b[31m\u202eevil\u2066", "\ud800", "a\r\nb\0", '" onx="']
)
NUMBERS = st.integers(0, 2**40)
SECONDS = st.floats(0, 1e6, allow_nan=False)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(TEXTS, VALUES, max_size=3)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Return what a person says, in one text or in parts."""
    role = draw(st.sampled_from(["user", "system"]))
    if draw(st.booleans()):
        return Message(role, draw(TEXTS))
    parts = draw(st.lists(TEXTS, min_size=1, max_size=3))
    content = [{"type": "text", "text": text} for text in parts]
    return read_messages([{"role": role, "content": content}])[0]


@st.composite
def sampled_ids(draw: st.DrawFn) -> Sampled:
    ids = draw(st.lists(st.integers(0, 200), max_size=6))
    logprobs = st.none() | st.floats(-30, 0)
    versions = st.none() | st.integers(0, 9)
    return Sampled(
        prompt_ids=tuple(draw(st.lists(st.integers(0, 200), max_size=6))),
        answer_ids=tuple(ids),
        logprobs=tuple(draw(st.lists(logprobs, min_size=len(ids), max_size=len(ids)))),
        forced=tuple(draw(st.sets(st.integers(0, len(ids) - 1)))) if ids else (),
        policy_versions=tuple(
            draw(st.just([]) | st.lists(versions, min_size=len(ids), max_size=len(ids)))
        ),
    )


@st.composite
def steps(draw: st.DrawFn, *, is_whole: bool) -> Step:
    names = st.text(min_size=1, max_size=9)
    ids = st.none() | st.uuids().map(str)
    calls = draw(st.lists(st.builds(ToolCall, names, ARGUMENTS, ids), max_size=3))
    message = Message("assistant", draw(TEXTS), thinking=draw(TEXTS), tool_calls=tuple(calls))
    answer = Answer(
        message=message,
        finish_reason=draw(st.sampled_from(["stop", "length", "abort"])),
        params=SamplingParams(temperature=draw(st.floats(0, 2)), stop=tuple(draw(st.just(["x"])))),
        num_prompt_tokens=draw(NUMBERS),
        num_cached_tokens=draw(NUMBERS),
        num_new_tokens=draw(NUMBERS),
        num_thinking_tokens=draw(NUMBERS),
        seconds=draw(SECONDS),
        sampled=draw(st.none() | sampled_ids()),
    )
    order = draw(st.permutations(range(len(calls))))
    results = [
        Result(
            number,
            draw(TEXTS),
            draw(st.booleans()),
            draw(SECONDS),
            draw(st.none() | st.just("ab12")),
            draw(st.just({}) | st.fixed_dictionaries({"diff": TEXTS, "exit_code": st.just(1)})),
        )
        for number in (order if is_whole else order[:1])
    ]
    return Step(tuple(draw(st.lists(messages(), max_size=2))), answer, tuple(results))


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    made = [draw(steps(is_whole=True)) for _ in range(draw(st.integers(0, 3)))]
    made += draw(st.lists(steps(is_whole=False), max_size=1))
    compactions = [
        Compaction(number, number, draw(TEXTS), draw(NUMBERS), draw(NUMBERS))
        for number in range(1, len(made))
        if draw(st.booleans())
    ]
    scores = st.builds(Score, st.floats(0, 1), st.dictionaries(TEXTS, st.floats(0, 1), max_size=2))
    return Trajectory(
        system=tuple(draw(st.lists(messages(), max_size=2))),
        steps=made,
        said=draw(st.lists(messages(), max_size=2)),
        compactions=compactions,
        start=draw(st.none() | st.just("00ff")),
        end=draw(st.none() | st.sampled_from(get_args(EndReason))),
        score=draw(st.none() | scores),
    )


QUIET = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@given(st.lists(trajectories(), max_size=3))
@settings(max_examples=examples(80), **QUIET)  # type: ignore[arg-type]
def test_lines_are_read_back_equal(tmp_path: Path, given_ones: list[Trajectory]) -> None:
    path = tmp_path / "some.jsonl"
    assert write_trajectories(path, given_ones) == len(given_ones)
    found = list(read_trajectories(path))
    assert found == given_ones
    ids = [
        [call.id for step in one.steps for call in step.answer.message.tool_calls] for one in found
    ]
    assert ids == [
        [call.id for step in one.steps for call in step.answer.message.tool_calls]
        for one in given_ones
    ]
    assert path.read_bytes().isascii()
    assert len(path.read_text().splitlines()) == len(given_ones)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2 cannot be read"),
        ("[]", "it is no object of format 1"),
        ('{"format": 2}', "it is no object of format 1"),
        ('{"format": 1, "system": [], "records": {}}', "it must have lists of system and records"),
        ('{"format": 1, "system": [], "records": [3]}', "a record is no object"),
        ('{"format": 1, "system": [], "start": 3, "records": []}', "start must be the name"),
        ('{"format": 1, "system": [3], "records": []}', "a message is of type int"),
        ('{"format": 1, "system": [], "records": [{"type": "result"}]}', "cannot follow"),
        ("[" * 100_000, "line 2 cannot be read"),
    ],
)
def test_a_line_that_is_no_trajectory_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    path = tmp_path / "some.jsonl"
    write_trajectories(path, [Trajectory()])
    with path.open("a") as file:
        file.write(line + "\n")
    found = read_trajectories(path)
    assert next(found) == Trajectory()
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2")) as refusal:
        next(found)
    assert sentence in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_an_answer_keeps_the_version_of_the_weights_that_gave_each_id() -> None:
    tokens = (Token(6, -0.1, policy_version=2), Token(7, -0.2, is_forced=True, policy_version=3))
    completion = Completion(
        reply=Reply(content="x"),
        finish_reason="stop",
        prompt_ids=(1,),
        prefix_ids=(5,),
        prefix_logprobs=(-0.3,),
        tokens=tokens,
        params=SamplingParams(),
        usage=Usage(num_prompt_tokens=1, num_new_tokens=2),
    )
    sampled = Answer.of(completion, seconds=1.0).sampled
    assert sampled is not None
    assert sampled.policy_versions == (None, 2, 3)
    unknown = replace(completion, tokens=tuple(replace(t, policy_version=None) for t in tokens))
    sampled = Answer.of(unknown, seconds=1.0).sampled
    assert sampled is not None
    assert sampled.policy_versions == ()


def test_ids_and_log_probabilities_must_fit_together(tmp_path: Path) -> None:
    sampled = Sampled(prompt_ids=(1,), answer_ids=(2, 3), logprobs=(-0.5, None), forced=(1,))
    answer = Answer(
        message=Message("assistant", "x", thinking=""),
        finish_reason="stop",
        params=SamplingParams(),
        sampled=sampled,
    )
    path = tmp_path / "some.jsonl"
    for changes in (
        {"logprobs": (-0.5,)},
        {"answer_ids": (2, -3)},
        {"forced": (2,)},
        {"prompt_ids": ("a",)},
        {"policy_versions": (1,)},
        {"policy_versions": (1, -1)},
    ):
        wrong = replace(answer, sampled=replace(sampled, **changes))
        write_trajectories(path, [Trajectory(steps=[Step((), wrong)])])
        with pytest.raises(ValueError, match="line 1 cannot be read"):
            list(read_trajectories(path))
    with pytest.raises(ValueError, match="JSON compliant"):
        write_trajectories(path, [Trajectory(score=Score(float("nan")))])
    assert path.read_text().startswith('{"format": 1')  # the old file stays


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


_TEXT, _COUNT, _ANY = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object"}
_IDS = {"type": "array", "items": _COUNT}
_CALL = _object({"tool_call_id": _TEXT, "function_name": _TEXT, "arguments": _ANY}, extra=_ANY)
_RESULT = _object({}, source_call_id=_TEXT, content=_TEXT, extra=_ANY)
_METRICS = _object(
    {},
    prompt_tokens=_COUNT,
    completion_tokens=_COUNT,
    cached_tokens=_COUNT,
    cost_usd={"type": "number"},
    prompt_token_ids=_IDS,
    completion_token_ids=_IDS,
    logprobs={"type": "array", "items": {"type": "number"}},
    extra=_ANY,
)
_STEP = _object(
    {"step_id": _COUNT, "source": {"enum": ["system", "user", "agent"]}, "message": _TEXT},
    reasoning_content=_TEXT,
    tool_calls={"type": "array", "items": _CALL},
    observation=_object({"results": {"type": "array", "items": _RESULT}}),
    metrics=_METRICS,
    llm_call_count=_COUNT,
    extra=_ANY,
)
_AGENT = _object(
    {"name": _TEXT, "version": _TEXT},
    model_name=_TEXT,
    tool_definitions={"type": "array", "items": _ANY},
    extra=_ANY,
)
_FINAL = _object(
    {},
    total_prompt_tokens=_COUNT,
    total_completion_tokens=_COUNT,
    total_cached_tokens=_COUNT,
    total_steps=_COUNT,
    extra=_ANY,
)
SCHEMA = _object(
    {
        "schema_version": {"const": "ATIF-v1.8"},
        "agent": _AGENT,
        "steps": {"type": "array", "items": _STEP, "minItems": 1},
    },
    session_id=_TEXT,
    trajectory_id=_TEXT,
    final_metrics=_FINAL,
    extra=_ANY,
)
"""Fields of ATIF 1.8 that we write, from its specification"""
AGENTS_ONLY = {"reasoning_content", "tool_calls", "metrics", "model_name"}


@given(trajectories())
@settings(max_examples=examples(60), **QUIET)  # type: ignore[arg-type]
def test_atif_follows_its_rules_and_holds_all(trajectory: Trajectory) -> None:
    is_empty = not (trajectory.system or trajectory.steps or trajectory.said)
    if is_empty:
        with pytest.raises(ValueError, match="the trajectory is empty"):
            to_atif(trajectory)
        return
    tools = PROFILES["minimal"]
    document = json.loads(json.dumps(to_atif(trajectory, model="m2", tools=tools, session="s")))
    jsonschema.validate(document, SCHEMA)
    assert [step["step_id"] for step in document["steps"]] == list(
        range(1, len(document["steps"]) + 1)
    )
    agents = [step for step in document["steps"] if step["source"] == "agent"]
    for step in document["steps"]:
        assert step["source"] == "agent" or not AGENTS_ONLY & set(step)
        known = [call["tool_call_id"] for call in step.get("tool_calls", [])]
        assert len(set(known)) == len(known)
        for result in step.get("observation", {}).get("results", []):
            assert result["source_call_id"] in known
    assert len(agents) == len(trajectory.steps)
    for found, step in zip(agents, trajectory.steps, strict=True):
        assert found["message"] == step.answer.message.content
        assert len(found.get("observation", {"results": []})["results"]) == len(step.results)
        if (sampled := step.answer.sampled) is not None:
            metrics = found["metrics"]
            assert tuple(metrics["completion_token_ids"]) == sampled.answer_ids
            assert tuple(metrics["prompt_token_ids"]) == sampled.prompt_ids
            values = metrics.get("logprobs", metrics["extra"].get("logprobs"))
            assert tuple(values) == sampled.logprobs
    if trajectory.score is not None:
        assert document["extra"]["score"]["value"] == trajectory.score.value


class Page(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(f"{tag}.{name}", value or "") for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


PLAIN = {
    *("html", "head", "meta", "title", "style", "body", "h1", "p", "pre", "div", "span"),
    *("details", "summary"),
}


@given(trajectories(), TEXTS)
@settings(max_examples=examples(60), **QUIET)  # type: ignore[arg-type]
def test_a_page_is_inert_whatever_stands_in_it(trajectory: Trajectory, title: str) -> None:
    text = view(trajectory, title=title)
    text.encode()
    page = Page(text)
    assert not page.open
    assert set(page.tags) <= PLAIN
    allowed = {"class", "title", "open", "lang", "charset", "name", "content", "http-equiv"}
    assert {name.partition(".")[2] for name, _ in page.attributes} <= allowed
    (policy,) = [value for _, value in page.attributes if value.startswith("default-src")]
    style = text.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)
    assert "url(" not in style
    assert "@import" not in style
    for step in trajectory.steps:
        for result in step.results:
            if result.text.isascii() and result.text.isprintable() and result.text:
                assert any(result.text in data for data in page.texts)


def test_a_page_shows_diffs_tokens_and_what_was_thought(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write_checkpoint(tmp_path, "m2"))
    ids = tuple(tokenizer.encode("Hi <b>"))
    answer = Answer(
        message=Message(
            "assistant", "", thinking="I see.", tool_calls=(ToolCall("edit", {"path": "a.py"}),)
        ),
        finish_reason="stop",
        params=SamplingParams(),
        sampled=Sampled(
            prompt_ids=(1,),
            answer_ids=ids,
            logprobs=(None, *[-0.01 - i for i in range(len(ids) - 1)]),
            forced=(0,),
        ),
    )
    diff = "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x < 1\n+x <= 1\n"
    trajectory = Trajectory(
        steps=[
            Step(
                (Message("user", "Mend it."),), answer, (Result(0, "done", details={"diff": diff}),)
            )
        ],
        end="done",
        score=Score(1.0, {"tests": 1.0}),
    )
    text = view(trajectory, title="a run", tokenizer=tokenizer)
    assert '<span class="add">+x &lt;= 1</span>' in text
    assert '<span class="del">-x &lt; 1</span>' in text
    assert '<div class="thought"><pre>\nI see.</pre></div>' in text
    assert "score 1 (tests 1)" in text
    assert 'class="p1 forced" title="0: id' in text
    assert '">&lt;</span>' in text
    assert "prefers-color-scheme: dark" in text
    shown = re.findall(r'title="\d+: id (\d+),', text)
    assert tuple(map(int, shown)) == ids
    assert f'">{ids[0]} </span>' in view(trajectory)
