"""docs/serving.md says what is so: commands, routes, fields, options and counters."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.routing import Match

from fulmen.server import create_app
from fulmen.server.fields import HARMLESS, REFUSED
from tests.server.helpers import answering, ask, scripted, served, served_checkpoint
from tests.test_docs import FENCE, ROOT, root_command

PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"
BLOCKS = FENCE.findall(PAGE)
CURLS = [
    command.replace("\\\n", " ")
    for language, body in BLOCKS
    if language == "sh"
    for command in re.split(r"^(?=curl )", body, flags=re.M)
    if command.startswith("curl ")
]
EXAMPLES = [body for language, body in BLOCKS if language == "text" and ADDRESS in body]
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
ASKED: dict[str, Any] = {
    "model": "any",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "Hi"}],
}


MANY = 700_000
"""Tokens of thought that a context of a million leaves room for"""


def section(title: str) -> str:
    """Return the text under a heading of the page."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    assert found is not None, title
    return found[1]


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    sessions = tmp_path_factory.mktemp("sessions")
    with served_checkpoint("m2", model_name="smollm2", sessions=sessions) as url:
        yield url


@pytest.fixture(scope="module")
def script() -> Iterator[str]:
    with served(answering("m2", lambda _: "Hm.</think>\n\nFine.")) as url:
        yield url


# ---- commands


@pytest.mark.parametrize("command", CURLS)
def test_a_command_of_the_page_is_answered(engine: str, command: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not here")
    assert ADDRESS in command
    told = "-w '\\n%{http_code} %{content_type}'"
    line = command.replace("curl ", f"curl {told} ", 1).replace(ADDRESS, engine)
    done = subprocess.run(
        ["sh", "-ec", line], capture_output=True, text=True, timeout=60, check=True
    )
    body, _, last = done.stdout.rpartition("\n")
    status, _, kind = last.partition(" ")
    assert status == "200", done.stdout
    if "stream" in command:
        assert kind.startswith("text/event-stream")
        names = re.findall(r"^event: (.*)$", body, re.M)
        assert (names[0], names[-1]) == ("message_start", "message_stop")
    elif "/metrics" in command:
        assert kind.startswith("text/plain")
        assert "fulmen:num_requests_running" in body
    elif "/v1/chat/completions" in command:
        (choice,) = json.loads(body)["choices"]
        content = choice["message"]["content"]
        assert choice["finish_reason"] in ("stop", "length")
        if "json_schema" in command:
            assert not content.strip() or content.lstrip().startswith("{")
    elif "/v1/models" in command:
        assert [model["id"] for model in json.loads(body)["data"]] == ["smollm2"]
    else:
        assert json.loads(body) == {"status": "ready"}


def test_the_page_has_commands() -> None:
    shown = "".join(CURLS)
    for path in (CHAT, MESSAGES, "/v1/models", "/ready", "/metrics"):
        assert f"{ADDRESS}{path}" in shown
    assert len(EXAMPLES) == 1


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_lines_with_either_sdk_run(
    engine: str, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "OpenAI(" in code
    assert "Anthropic(" in code
    lines = code.replace(ADDRESS, engine).replace("client = ", "clients += [client := ")
    lines = re.sub(r"(clients \+= \[.*)$", r"\1]", lines, flags=re.M)
    clients: list[Any] = []
    exec(compile(lines, "block", "exec"), {"clients": clients})
    for client in clients:
        client.close()
    printed = capsys.readouterr().out
    assert printed.startswith("ChatCompletion(")
    assert "\nMessage(" in printed


# ---- routes


def test_every_route_of_the_table_is_there() -> None:
    app = create_app(scripted("m2"))
    named = set()
    for method, path in re.findall(r"`(GET|POST|DELETE) (/[^`]*)`", section("Routes")):
        scope = {"type": "http", "method": method, "path": path, "headers": [], "root_path": ""}
        assert any(route.matches(scope)[0] is Match.FULL for route in app.routes), path
        named.add(re.sub(r"\b(NAME|ID)\b", "{}", path))
    for path in app.openapi()["paths"]:
        if path.startswith("/v1/"):
            assert re.sub(r"\{\w+\}", "{}", path) in named, path


def test_head_works_where_get_does_and_options_everywhere(script: str) -> None:
    for method, path in re.findall(r"`(GET|POST) (/[^`]*)`", section("Routes")):
        options = ask(script, path, method="OPTIONS")
        assert options.status == 204, path
        assert method in options.headers["allow"]
        if method == "GET":
            # Nothing has that id, and the script keeps no sessions.
            status = 404 if "/ID" in path or path.startswith("/v1/sessions") else 200
            asked = f"{path}?turn=1" if path.endswith("/tokens") else path
            assert ask(script, asked).status == status, path
            head = ask(script, asked, method="HEAD")
            assert (head.status, head.body) == (status, b""), path


def test_the_openapi_page_tells_every_field_of_the_tables(script: str) -> None:
    schemas = ask(script, "/openapi.json").json()["components"]["schemas"]
    fields = set(schemas["ChatBody"]["properties"]) | set(schemas["MessagesBody"]["properties"])
    assert {"response_format", "tool_choice", "logprobs", "return_token_ids", "n"} <= fields
    assert {"thinking", "output_config", "context_management", "diagnostics"} <= fields


# ---- fields


def ignored_and_refused() -> tuple[list[str], list[str]]:
    text = section("Ignored and refused")
    ignored = re.search(r"Ignored without a word: (.*?)\. Ignored and", text, re.S)
    refused = re.search(r"Refused with a 400.*?: (.*?)\. Pictures", text, re.S)
    assert ignored is not None
    assert refused is not None
    return spans(ignored[1]), spans(refused[1])


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_what_is_ignored_is_not_told(script: str, path: str) -> None:
    names, _ = ignored_and_refused()
    assert len(names) > 5
    assert set(names) <= HARMLESS
    values: list[Any] = ["text", {}, 7, None, [1]]
    for value in values:
        answer = ask(script, path, {**ASKED, **dict.fromkeys(names, value)})
        assert answer.status == 200, answer.body
        assert "ignored" not in answer.json()["fulmen"]
    known = ask(script, path, {**ASKED, "frobnicate": 1}).json()
    assert known["fulmen"]["ignored"] == ["frobnicate"]


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_what_is_refused_is_named_unless_it_changes_nothing(script: str, path: str) -> None:
    _, names = ignored_and_refused()
    assert len(names) > 15
    for name in names:
        answer = ask(script, path, {**ASKED, name: {"some": "thing"}})
        assert answer.status == 400, name
        assert name in answer.json()["error"]["message"]
        for neutral in (None, *REFUSED[name]):
            answer = ask(script, path, {**ASKED, name: neutral})
            assert answer.status == 200, (name, neutral, answer.body)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "file", "file": {"file_data": "AA=="}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
        {"type": "document", "source": {"type": "text", "data": "a"}},
    ],
)
def test_pictures_are_refused_or_dropped(script: str, part: dict[str, Any]) -> None:
    content = [{"type": "text", "text": "Look"}, part]
    body = {**ASKED, "messages": [{"role": "user", "content": content}]}
    path = CHAT if part["type"] in ("image_url", "input_audio", "file") else MESSAGES
    refused = ask(script, path, body)
    assert refused.status == 400
    assert "messages[0]" in refused.json()["error"]["message"]
    with served(answering("m2", lambda _: "a</think>\n\nb"), drop_images=True) as url:
        answer = ask(url, path, body)
        assert answer.status == 200, answer.body
        assert answer.json()["fulmen"]["dropped_images"] == 1


def test_words_for_effort_are_the_budgets_of_the_table() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| `reasoning_effort`"))
    meaning = row.split(" | ")[1]
    table: dict[str, int | None] = {}
    for words, budget in re.findall(r"((?:`\w+`(?:, )?)+): ([^.|]*)", meaning):
        number = re.search(r"[\d,]+", budget)
        for word in spans(words):
            table[word] = int(number[0].replace(",", "")) if number else None
    assert table.pop("none") is None
    table["none"] = 0
    assert set(table) == {"none", "minimal", "low", "medium", "high", "xhigh", "max"}
    model = answering("m2", lambda _: "a</think>\n\nb")
    unlimited = {key: value for key, value in ASKED.items() if key != "max_tokens"}
    with served(model, answer_share=0.0) as url:
        for word, budget in table.items():
            for path, fields in (
                (CHAT, {"reasoning_effort": word}),
                (CHAT, {"reasoning": {"effort": word}}),
                (MESSAGES, {"output_config": {"effort": word}}),
            ):
                assert ask(url, path, {**unlimited, **fields}).status == 200, (path, word)
                params = model.requests[-1].params
                assert params is not None
                assert params.thinking_budget == budget, (path, word)


BUDGETS: list[tuple[str, dict[str, Any], int | None]] = [
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1500}}, 1500),
    (MESSAGES, {"thinking": {"type": "adaptive"}}, None),
    (MESSAGES, {"thinking": {"type": "between_tools"}}, None),
    (MESSAGES, {"thinking": {"type": "disabled"}}, 0),
    (CHAT, {"thinking_token_budget": 1500}, 1500),
    (CHAT, {"thinking_budget": 1500}, 1500),
    (CHAT, {"reasoning_budget": 1500}, 1500),
    (CHAT, {"reasoning_budget": -1}, None),
    (CHAT, {"reasoning": {"max_tokens": 1500}}, 1500),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}, 0),
    (CHAT, {"reasoning": {"enabled": False}}, 0),
    (CHAT, {"max_tokens": 400}, 300),
    (MESSAGES, {"max_tokens": 400}, 300),
]


def test_the_table_of_thinking_is_right() -> None:
    model = answering("m2", lambda _: "a</think>\n\nb")
    text = section("Thinking")
    unlimited = {key: value for key, value in ASKED.items() if key != "max_tokens"}
    with served(model) as url:
        for path, fields, budget in BUDGETS:
            assert all(name in text for name in fields)
            assert ask(url, path, {**unlimited, **fields}).status == 200, fields
            params = model.requests[-1].params
            assert params is not None
            if budget is None:  # all but the answer's share of the context
                assert (params.thinking_budget or MANY) >= MANY, fields
            else:
                assert params.thinking_budget == budget, fields


# ---- options and counters


OF_OTHERS = {"--gpus", "--incremental-streaming-output", "--enable-prompt-tokens-details"}
"""Options of fulmen plan, SGLang and vLLM"""


def test_every_option_is_one_of_the_command() -> None:
    command = root_command().commands["serve"]
    known = {flag for option in command.params for flag in option.opts}
    page = re.sub(r"^lm_eval .*(\n +.*)*", "", PAGE, flags=re.M)  # its options are its own
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page)) - OF_OTHERS
    assert len(named) > 15
    assert named - known == {"--help"}


def test_every_counter_is_one_of_the_metrics(engine: str) -> None:
    assert ask(engine, CHAT, {**ASKED, "max_tokens": 8}).status == 200
    text = ask(engine, "/metrics").body.decode()
    names = re.findall(r"`(fulmen:\w+)`", PAGE)
    assert len(names) > 5
    for name in names:
        assert re.search(rf"^{name}(_bucket)?{{", text, re.M), name


def test_the_fields_of_the_report_are_those_that_come(script: str) -> None:
    named = spans(
        "".join(
            line.split(" | ")[0]
            for line in section("Histories").splitlines()
            if line.startswith("| ")
        )
    )
    assert {"turns", "problems", "ignored", "repairs"} <= set(named)
    first = ask(script, CHAT, ASKED).json()
    said = first["choices"][0]["message"]
    messages = [*ASKED["messages"], said, {"role": "user", "content": "More"}]
    second = ask(script, CHAT, {**ASKED, "messages": messages, "frobnicate": 1}).json()
    report = second["fulmen"]
    assert set(report) <= {*named, "dropped_images"}
    assert [turn["state"] for turn in report["turns"]] == ["matched"]
    assert report["compared_with"] == first["id"]
