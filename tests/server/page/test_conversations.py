"""Conversations as a person has them: send, stop, edit, branch, compare, find, keep, delete."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.helpers import ask
from tests.server.page.serving import LONG, served_page
from tests.server.page.tab import Tab

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served_page(tmp_path_factory.mktemp("sessions")) as url:
        yield url


def session_names(url: str) -> list[str]:
    return [each["id"] for each in ask(url, "/v1/sessions?limit=100").json()["data"]]


def test_a_thought_streams_and_is_folded_with_its_tokens(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.send(f"say:{'I think. ' * 400}</think>\n\nDone.")
    tab.wait(lambda: "I think." in tab.text(".live .thought-text"))
    assert tab.button("Answer now").is_displayed()
    tab.wait(lambda: re.search(r"Thinking · [\d,]+ tokens", tab.text(".live summary")))
    tab.wait(lambda: re.search(r"[\d,]+ tokens · [\d.,]+ tokens/s", tab.text(".live .status")))
    tab.wait_for_turns(1)
    thought = tab.one("article .thought")
    assert thought.get_attribute("open") is None
    assert tab.text(".thought summary") == "Thought · 3,601 tokens"
    tab.one(".thought summary").click()
    assert tab.text(".thought-text").startswith("I think. I think.")
    assert tab.answers == ["Done."]


def test_a_stopped_answer_keeps_what_it_said(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.send(f"say:</think>\n\n{LONG}")
    tab.wait(lambda: "one more word" in tab.text(".live .markdown"))
    tab.click("Stop")
    tab.wait_for_turns(1)
    (answer,) = tab.answers
    assert answer.startswith("one more word")
    assert len(answer) < len(LONG) - 100
    assert tab.text(".answer .note") == "Stopped."
    assert tab.ask("and now") == "Answer 2 to and now."


def test_an_edited_message_and_a_second_answer_are_branches(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask("first")
    tab.ask("second")
    tab.edit("other")
    tab.wait(lambda: tab.answers == ["Answer 1 to other."])
    assert tab.text(".branches span") == "2 / 2"
    tab.click("Answer again", "article:nth-of-type(1)")
    tab.wait(lambda: tab.texts(".branches span") == ["3 / 3"])
    tab.wait_for_turns(1)
    tab.click("Next branch")
    tab.wait(lambda: tab.answers == ["Answer 1 to first.", "Answer 2 to second."])
    tab.click("Previous branch")
    tab.wait(lambda: tab.answers == ["Answer 1 to other."])


def test_a_branch_begins_at_a_token_or_at_another_one(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask("say:</think>\n\nabcdef")
    tab.click("Tokens")
    tab.one(".token")
    place = tab.texts(".token").index("d")
    tab.all(".token")[place].click()
    assert re.search(r"d [\d.]+ % · log-probability -[\d.]+ · id \d+", tab.text(".detail"))
    assert len(tab.all(".detail p:nth-child(2) button")) == 5
    tab.click("Branch from here", ".detail")
    tab.wait(lambda: tab.answers == ["abc and so on."])
    assert tab.text(".branches span") == "2 / 2"
    tab.click("Tokens")
    tab.one(".token")
    place = tab.texts(".token").index("b")
    tab.all(".token")[place].click()
    others = {
        other.find_element("css selector", "code").text: other
        for other in tab.all(".detail p:nth-child(2) button")
    }
    said, other = next((said, other) for said, other in others.items() if said not in ("∅", "b"))
    other.click()
    tab.wait(lambda: tab.texts(".branches span") == ["3 / 3"])
    tab.wait_for_turns(1)
    ids = ask(url, f"/v1/sessions/{newest(url)}/tokens?turn=1&top=5").json()["data"]
    assert ids[place]["text"].replace(" ", "␣").replace("\n", "⏎") == said
    assert tab.answers[0].startswith("a")
    assert tab.answers[0].endswith(" and so on.")


def newest(url: str) -> str:
    return session_names(url)[0]


def test_two_branches_are_compared_and_the_tree_goes_to_one(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask("one")
    tab.click("Edit", ".user")
    tab.type("two", "textarea.edit")
    tab.keys("Ctrl+Enter")
    tab.wait(lambda: tab.answers == ["Answer 1 to two."])
    tab.wait_for_turns(1)
    tab.click("Compare")
    sides = tab.wait(lambda: tab.texts(".side"))
    assert "Answer 1 to two." in sides[0]
    assert "Answer 1 to one." in sides[1]
    tab.close_dialog()
    tab.click("Branches")
    nodes = tab.wait(lambda: tab.texts(".node b"))
    assert sorted(nodes) == ["one", "two"]
    assert tab.text(".node.here b") == "two"
    next(node for node in tab.all(".node") if node.text.startswith("one")).click()
    tab.wait(lambda: tab.answers == ["Answer 1 to one."])


def test_a_second_click_asks_nothing(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask("one")
    tab.js("arguments[0].click(); arguments[0].click()", tab.button("Answer again"))
    tab.wait(lambda: tab.texts(".branches span") == ["2 / 2"])
    tab.wait_for_turns(1)
    time.sleep(0.3)
    assert tab.texts(".branches span") == ["2 / 2"]


def test_going_on_from_an_earlier_answer_begins_a_branch(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask("one")
    tab.ask("two")
    tab.click("Branch from here", "article:nth-of-type(1)")
    tab.wait(lambda: tab.answers == ["Answer 1 to one."])
    assert tab.focused == "input"
    tab.ask("three")
    assert tab.answers == ["Answer 1 to one.", "Answer 2 to three."]
    assert tab.text(".branches span") == "2 / 2"


def test_an_answer_goes_on_whole_after_a_reload(tab: Tab, url: str) -> None:
    tab.open(url)
    text = "".join(f"word {number}. " for number in range(400)).strip()
    tab.send(f"say:Hm.</think>\n\n{text}")
    tab.wait(lambda: "word 20." in tab.text(".live .markdown"))
    tab.reload()
    tab.wait(lambda: "word 40." in tab.text(".live .markdown"))
    assert tab.text(".live .markdown").startswith("word 0. word 1. ")
    tab.wait_for_turns(1)
    assert tab.answers == [text]


def test_conversations_are_found_renamed_and_deleted(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask("about flamingos")
    tab.ask("and the capital of Peru")
    tab.click("New conversation")
    tab.ask("about cranes")
    tab.type("capital of Peru", "#search")  # no title says so
    tab.wait(lambda: tab.texts("button.conversation") == ["about flamingos"])
    tab.type("", "#search")
    tab.wait(lambda: "about cranes" in tab.texts("button.conversation"))
    tab.click("Rename, save or delete: about cranes")
    tab.type("Birds", "#dialog input")
    tab.click("Rename")
    tab.wait(lambda: tab.text("#title") == "Birds")
    tab.reload()
    tab.wait(lambda: tab.text("#title") == "Birds")
    assert tab.answers == ["Answer 1 to about cranes."]
    name = tab.js("return location.hash.slice(1)")
    assert name in session_names(url)
    tab.click("Rename, save or delete: Birds")
    tab.click("Delete", "#dialog")
    tab.click("Delete", "#dialog")
    tab.wait(lambda: "Birds" not in tab.texts("button.conversation"))
    assert name not in session_names(url)
    assert tab.answers == []


def test_a_conversation_is_exported_and_imported_with_all_branches(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask("one")
    tab.ask("three")
    tab.edit("two", place=2)
    tab.wait(lambda: tab.texts(".branches span") == ["2 / 2"])
    tab.wait_for_turns(2)
    tab.click("Rename, save or delete: one")
    tab.click("Save as Markdown")
    written = tab.downloaded(".md")
    assert written.startswith("# one\n\n## You\n\none\n\n## Model\n\n<details><summary>Thought")
    assert "Answer 2 to **two**." in written
    tab.click("Rename, save or delete: one")
    tab.click("Save as JSON")
    value = json.loads(tab.downloaded(".json"))
    assert [len(branch["messages"]) for branch in value["branches"]] == [4, 4]
    value["title"] = "taken over"
    file = tab.downloads / "taken.json"
    file.write_text(json.dumps(value))
    tab.js("document.getElementById('import-picker').hidden = false")
    tab.all("#import-picker")[0].send_keys(str(file))
    tab.wait(lambda: tab.text("#title") == "taken over")
    tab.wait(lambda: tab.texts(".branches span"))
    assert tab.answers[0] == "Answer 1 to one."
    tab.click("Branches")
    assert sorted(tab.wait(lambda: tab.texts(".node b"))) == ["one", "three", "two"]


def test_a_file_that_is_no_conversation_is_refused(tab: Tab, url: str) -> None:
    tab.open(url)
    before = session_names(url)
    tab.js("document.getElementById('import-picker').hidden = false")
    no_settings: dict[str, object] = {
        "format": "fulmen-conversation",
        "branches": [{"messages": []}],
        "settings": None,
    }
    lists = no_settings | {"settings": []}
    for text in (
        *("{", '{"format": "other"}', "null", '{"format": "fulmen-conversation"}'),
        *(json.dumps(no_settings), json.dumps(lists)),
    ):
        file = tab.downloads / "taken.json"
        file.write_text(text)
        tab.all("#import-picker")[0].send_keys(str(file))
        tab.wait(lambda: tab.text("#notice").endswith("This file holds no conversation."))
    assert session_names(url) == before


def test_a_tool_call_is_answered_by_hand(tab: Tab, tmp_path: Path) -> None:
    call = (
        'I look.</think>\n\n<minimax:tool_call>\n<invoke name="weather">\n'
        '<parameter name="city">Lima</parameter>\n</invoke>\n</minimax:tool_call>'
    )

    def answer(request: object) -> str:
        messages = request.messages  # type: ignore[attr-defined]
        last = messages[-1] if isinstance(messages[-1], dict) else messages[-1].to_dict()
        return f"So.</think>\n\nIt is {last['content']}." if last["role"] == "tool" else call

    tools = [{"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}}]
    with served_page(tmp_path / "sessions", answer) as url:
        tab.open(url)
        tab.click("Settings")
        tab.type("{", "#set-tools")
        tab.click("Save", "#dialog")
        tab.wait(lambda: "Tools (JSON): This is not JSON" in tab.text("#dialog-notice"))
        tab.type(json.dumps(tools), "#set-tools")
        tab.click("Save", "#dialog")
        tab.send("What is the weather in Lima?")
        tab.wait_for_turns(1)
        assert tab.text(".card.call summary") == "Tool call weather"
        assert json.loads(tab.text(".card.call pre")) == {"city": "Lima"}
        tab.type("18 degrees", ".results textarea")
        tab.click("Give the result")
        tab.wait_for_turns(2)
        assert tab.answers == ["It is 18 degrees."]
        assert tab.text(".card.result pre") == "18 degrees"
        assert not tab.all(".results")
        tab.reload()
        tab.wait(lambda: tab.answers == ["It is 18 degrees."])


def test_a_call_that_is_stopped_stays_shown(tab: Tab, tmp_path: Path) -> None:
    call = (
        '</think>\n\n<minimax:tool_call>\n<invoke name="write">\n'
        f'<parameter name="text">{LONG}</parameter>\n</invoke>\n</minimax:tool_call>'
    )
    tools = [{"name": "write", "parameters": {"type": "object", "properties": {"text": {}}}}]
    with served_page(tmp_path / "sessions", lambda request: f"I write.{call}") as url:
        tab.open(url)
        tab.click("Settings")
        tab.type(json.dumps(tools), "#set-tools")
        tab.click("Save", "#dialog")
        tab.send("Write it down")
        tab.wait(lambda: "one more word" in tab.text(".live .card.call pre"))
        tab.click("Stop")
        tab.wait_for_turns(1)
        assert tab.text(".card.cut summary") == "Tool call, cut: write"
        assert "one more word" in tab.text(".card.cut pre")
        assert not tab.all(".results")


def test_a_conversation_with_settings_of_no_use_is_opened(tab: Tab, url: str) -> None:
    for place, settings in enumerate(("null", "[1]", "7", "{")):
        metadata = {"title": f"odd {place}", "settings": settings}
        made = ask(url, "/v1/sessions", {"name": f"odd-{place}", "metadata": metadata})
        assert made.status == 200
    tab.open(url)
    for place in range(4):
        tab.click(f"odd {place}")
        tab.wait(lambda place=place: tab.text("#title") == f"odd {place}")  # type: ignore[misc]
        tab.click("Settings")
        assert tab.one("#set-temperature").get_attribute("value") == ""
        tab.close_dialog()


def test_schema_and_budget_reach_the_request(tab: Tab, url: str) -> None:
    tab.expected = ["418"]
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tab.open(url)
    tab.click("Settings")
    tab.type("[]", "#set-schema")
    tab.click("Save", "#dialog")
    tab.wait(lambda: "JSON schema of the answer: This is not JSON" in tab.text("#dialog-notice"))
    tab.type(json.dumps(schema), "#set-schema")
    tab.click("Save", "#dialog")
    tab.wait(lambda: not tab.is_shown("#dialog"))
    tab.type("3", "#budget")
    tab.requests_not_sent()
    tab.send("as JSON")
    (sent,) = tab.wait(lambda: tab.sent)
    assert sent["thinking_token_budget"] == 256
    assert sent["text"]["format"] == {
        "type": "json_schema",
        "name": "answer",
        "strict": True,
        "schema": schema,
    }
    tab.wait(lambda: tab.one("#input").get_attribute("value") == "as JSON")


def test_a_turn_of_two_branches_leads_away_from_neither(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask("one")
    tab.ask("two")
    tab.edit("other", place=2)
    tab.wait(lambda: tab.answers[-1] == "Answer 2 to other.")
    tab.wait_for_turns(2)
    tab.click("Previous branch")
    tab.wait(lambda: tab.answers[-1] == "Answer 2 to two.")
    tab.ask("three")  # this branch was used last
    tab.click("Next branch")
    tab.wait(lambda: tab.answers[-1] == "Answer 2 to other.")
    tab.js("document.querySelector('article').focus()")
    tab.keys("l")
    tab.keys("h")
    tab.click("Branches")
    next(node for node in tab.all(".node") if node.text.startswith("one")).click()
    tab.wait(lambda: not tab.is_shown("#dialog"))
    time.sleep(0.3)
    assert tab.answers == ["Answer 1 to one.", "Answer 2 to other."]


def test_settings_and_the_budget_stay_with_a_conversation(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.click("Settings")
    for name, value in {"system": "Be kind.", "temperature": "0.3", "top_k": "5"}.items():
        tab.type(value, f"#set-{name}")
    tab.click("Save", "#dialog")
    tab.wait(lambda: not tab.is_shown("#dialog"))
    tab.type("3", "#budget")
    assert tab.text("#budget-shown") == "256"
    tab.ask("keep it")
    tab.ask("again")
    assert tab.texts(".system .text") == ["Be kind."]
    name = tab.js("return location.hash.slice(1)")
    kept = json.loads(ask(url, f"/v1/sessions/{name}").json()["metadata"]["settings"])
    expected = {"system": "Be kind.", "temperature": 0.3, "top_k": 5, "thinking_token_budget": 256}
    assert kept == expected
    tab.reload()
    assert tab.text("#budget-shown") == "256"
    tab.click("Settings")
    assert tab.one("#set-temperature").get_attribute("value") == "0.3"
    assert tab.one("#set-system").get_attribute("value") == "Be kind."


def test_another_system_prompt_begins_a_branch_with_all_that_was_said(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask("one")
    tab.click("Settings")
    tab.type("Be brief.", "#set-system")
    tab.click("Save", "#dialog")
    tab.wait(lambda: not tab.is_shown("#dialog"))
    tab.send("two")
    tab.wait(lambda: tab.answers == ["Answer 1 to one.", "Answer 2 to two."])
    assert tab.texts(".system .text") == ["Be brief."]
    assert tab.texts(".branches span") == ["2 / 2"]
    tab.ask("three")
    roles = [each["role"] for each in ask(url, f"/v1/sessions/{newest(url)}").json()["messages"]]
    assert roles == ["system", *["user", "assistant"] * 3]
    tab.click("Previous branch")
    tab.wait(lambda: tab.answers == ["Answer 1 to one."])


def test_a_long_paste_becomes_a_file_and_is_folded(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.js(
        "const transfer = new DataTransfer();"
        "transfer.setData('text/plain', 'long line\\n'.repeat(600));"
        "document.getElementById('input').dispatchEvent("
        "new ClipboardEvent('paste', {clipboardData: transfer, cancelable: true}))"
    )
    assert tab.text("#files li").startswith("file-1.txt (6,000)")
    tab.ask("read it")
    assert tab.text(".user .file summary") == "File: file-1.txt"
    assert tab.text("#title").startswith("file-1.txt")


def test_files_are_picked_and_dropped_and_text_is_pasted_before_pictures(
    tab: Tab, url: str
) -> None:
    tab.open(url)
    file = tab.downloads / "notes.txt"
    file.write_text("a note")
    tab.js("document.getElementById('file-picker').hidden = false")
    tab.all("#file-picker")[0].send_keys(str(file))
    tab.wait(lambda: tab.texts("#files li") == ["notes.txt (6) ✕"])
    event = (
        "const [kind, text, name] = arguments; const data = new DataTransfer();"
        "if (text) data.setData('text/plain', text);"
        "if (name) data.items.add(new File(['dropped'], name));"
        "const about = {cancelable: true, bubbles: true};"
        "const event = kind === 'drop' ? new DragEvent(kind, {...about, dataTransfer: data})"
        " : new ClipboardEvent(kind, {...about, clipboardData: data});"
        "return document.getElementById('input').dispatchEvent(event)"  # true: the browser acts
    )
    assert tab.js(event, "drop", "", "dropped.md") is False
    tab.wait(lambda: tab.texts("#files li")[1:] == ["dropped.md (7) ✕"])
    assert tab.js(event, "drop", "some words", "") is True
    assert tab.js(event, "paste", "some words", "picture.png") is True
    assert tab.js(event, "paste", "", "pasted.txt") is False
    tab.wait(lambda: len(tab.texts("#files li")) == 3)
    tab.click("Remove pasted.txt")
    tab.ask("read them")
    assert tab.texts(".user .file summary") == ["File: notes.txt", "File: dropped.md"]


def test_code_is_copied(tab: Tab, url: str) -> None:
    tab.chrome.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    tab.open(url)
    tab.ask("say:</think>\n\n```python\nx = 1\ny = 2\n```")
    tab.one(".code .copy").click()
    tab.wait(lambda: tab.text(".code .copy") == "Copied")
    copied = tab.chrome.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](String(error)))"
    )
    assert copied == "x = 1\ny = 2\n"


def test_the_meter_tells_tokens_cache_and_pace(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask("one")
    tab.ask("two")
    meter = tab.one("#meter")
    text = meter.get_attribute("aria-valuetext")
    assert text is not None
    assert re.fullmatch(r"\d+ of 65,536 tokens, \d+ % from the cache(, [\d.,]+ tokens/s)?", text)
    tab.js("arguments[0].focus()", meter)
    assert tab.js("return getComputedStyle(arguments[0], '::after').content", meter) != "none"


def test_while_a_long_prompt_is_read_the_page_says_how_far(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.send("long " * 6000)
    found = tab.wait(
        lambda: re.findall(
            r"Reading the prompt: ([\d,]+) of ([\d,]+) tokens", tab.text(".live .status")
        )
    )
    read, total = (int(number.replace(",", "")) for number in found[0])
    assert 0 <= read < total
    assert total > 30_000
    tab.click("Stop")
    tab.wait(lambda: not tab.all(".live"))


def test_the_model_is_described_in_the_pages_language(tab: Tab, url: str) -> None:
    card = ask(url, "/v1/models").json()["data"][0]["card"]
    tab.open(url)
    for language, button in (("en", "Model"), ("de", "Modell")):
        tab.choose("#language", language)
        tab.click(button)
        shown = tab.text("#dialog .markdown")
        assert shown
        for word in re.findall(r"[\w-]{4,}", card[language])[:5]:
            assert word in shown
        tab.close_dialog()
