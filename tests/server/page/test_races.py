"""People act while a request is under way: nothing is lost, and nothing lands elsewhere."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.helpers import ask, scripted, served
from tests.server.page.proxy import Proxy, behind
from tests.server.page.serving import LONG, served_page
from tests.server.page.tab import Tab

pytestmark = pytest.mark.slow

SAID = "".join(f"word {number}. " for number in range(400)).strip()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served_page(tmp_path_factory.mktemp("sessions")) as url:
        yield url


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    with behind(server) as proxy:
        yield proxy


def begun(server: str, name: str, *texts: str) -> None:
    """Begin a session that has said these things."""
    messages = [
        message
        for text in texts
        for message in (
            {"role": "user", "content": text},
            {"role": "assistant", "content": f"Answer to {text}."},
        )
    ]
    body = {"name": name, "messages": messages, "metadata": {"title": name}}
    assert ask(server, "/v1/sessions", body).status == 200


def questions(server: str, name: str) -> list[str]:
    """Return what was asked in a session, as the server has it."""
    answer = ask(server, f"/v1/sessions/{name}")
    return [m["content"] for m in answer.json().get("messages", []) if m["role"] == "user"]


def shown(tab: Tab) -> str:
    """Return the name of the conversation that is shown."""
    return str(tab.js("return location.hash.slice(1)"))


def written(tab: Tab) -> str | None:
    return tab.one("#input").get_attribute("value")


def test_a_message_that_is_sent_before_its_conversation_is_read_goes_after_it(
    tab: Tab, server: str, proxy: Proxy
) -> None:
    begun(server, "early", "one", "two")
    with proxy.holding("GET /v1/sessions/early$"):
        tab.open(f"{proxy.url}#early")
        tab.wait(lambda: proxy.num_waiting)
        tab.send("three")
    tab.wait_for_turns(3)
    assert questions(server, "early") == ["one", "two", "three"]
    assert tab.answers[-1] == "Answer 3 to three."


def test_a_session_that_went_on_elsewhere_is_not_gone_over(
    tab: Tab, server: str, proxy: Proxy
) -> None:
    tab.expected = ["409"]
    begun(server, "shared", "one")
    tab.open(f"{proxy.url}#shared")
    tab.wait_for_turns(1)
    messages = ask(server, "/v1/sessions/shared").json()["messages"]
    other = {"messages": [*messages, {"role": "user", "content": "other"}], "session": "shared"}
    assert ask(server, "/v1/chat/completions", other).status == 200
    tab.send("mine")
    tab.wait(lambda: "stands at turn" in tab.text("#notice"))
    tab.wait_for_turns(2)
    assert written(tab) == "mine"
    assert questions(server, "shared") == ["one", "other"]
    tab.one("#send").click()
    tab.wait_for_turns(3)
    assert questions(server, "shared") == ["one", "other", "mine"]


def test_who_goes_elsewhere_while_a_branch_is_made_asks_where_they_were(
    tab: Tab, server: str, proxy: Proxy
) -> None:
    begun(server, "there", "one there")
    begun(server, "here", "one here", "two here")
    tab.open(f"{proxy.url}#here")
    tab.wait_for_turns(2)
    with proxy.holding("POST /v1/sessions/here/fork"):
        tab.click("Answer again", "article:nth-of-type(2)")
        tab.wait(lambda: proxy.num_waiting)
        tab.click("there")
        tab.wait_for_turns(1)
    tab.click("here")
    tab.wait(lambda: tab.texts(".branches span") == ["2 / 2"])
    tab.wait_for_turns(2)
    assert tab.answers[-1] == "Answer 2 to two here."
    assert questions(server, "there") == ["one there"]
    assert questions(server, "here") == ["one here", "two here"]


@pytest.mark.parametrize("status", [502, 500])
def test_an_answer_stays_if_only_its_saving_fails(
    tab: Tab, server: str, proxy: Proxy, status: int
) -> None:
    tab.expected = [str(status)]
    name = f"saving-{status}"
    begun(server, name, "one")
    tab.open(f"{proxy.url}#{name}")
    tab.wait_for_turns(1)
    with proxy.refusing("POST /v1/sessions/.*/save", status):
        tab.send("two")
        tab.wait(lambda: proxy.num_refused)
        tab.wait(lambda: "Answer 2 to two." in tab.text("article:nth-of-type(2)"))
        assert written(tab) == ""
    tab.wait_for_turns(2)
    with proxy.refusing("POST /v1/sessions/.*/save", status):
        refused = proxy.num_refused
        tab.click("Answer again", "article:nth-of-type(2)")
        tab.wait(lambda: proxy.num_refused > refused)
    tab.wait(lambda: tab.texts(".branches span") == ["2 / 2"])
    tab.wait_for_turns(2)
    assert tab.answers[-1] == "Answer 2 to two."
    assert questions(server, name) == ["one", "two"]


def test_an_answer_goes_on_behind_a_proxy_whose_server_is_away(
    tab: Tab, server: str, proxy: Proxy
) -> None:
    tab.expected = ["net::ERR_", "502"]
    tab.open(proxy.url)
    tab.send(f"say:Hm.</think>\n\n{SAID}")
    tab.wait(lambda: "word 20." in tab.text(".live .markdown"))
    with proxy.refusing("GET /v1/responses/", 502):
        proxy.cut()
        proxy.mend()
        tab.wait(lambda: proxy.num_refused > 1)
        assert "The connection is gone" in tab.text(".live .status")
    tab.wait_for_turns(1)
    assert tab.answers == [SAID]


def test_an_answer_whose_beginning_is_lost_on_the_way_is_found(
    tab: Tab, server: str, proxy: Proxy
) -> None:
    tab.expected = ["net::ERR_"]
    tab.open(proxy.url)
    tab.js(
        "const asked = fetch; window.fetch = async (...all) => {"
        " const reply = await asked(...all);"
        " if (!/responses$/.test(all[0])) return reply;"
        " window.fetch = asked; throw new TypeError('lost'); }"
    )
    tab.send("say:Hm.</think>\n\nIt came.")
    tab.wait_for_turns(1)
    assert tab.answers == ["It came."]
    assert written(tab) == ""


def test_who_goes_elsewhere_before_the_request_is_out_has_asked(
    tab: Tab, server: str, proxy: Proxy
) -> None:
    begun(server, "elsewhere", "one")
    tab.open(proxy.url)
    name = shown(tab)
    with proxy.holding("POST /v1/sessions$"):
        tab.send("asked in haste")
        tab.wait(lambda: proxy.num_waiting)
        tab.click("elsewhere")
        tab.wait_for_turns(1)
    tab.wait(lambda: questions(server, name) == ["asked in haste"])
    assert len(tab.answers) == 1
    tab.click("asked in haste")
    tab.wait(lambda: tab.answers == ["Answer 1 to asked in haste."])


def test_what_is_refused_while_another_conversation_is_shown_is_given_back_later(
    tab: Tab, server: str, proxy: Proxy
) -> None:
    tab.expected = ["418"]
    begun(server, "other-1", "one")
    begun(server, "mine-1", "one")
    tab.open(f"{proxy.url}#mine-1")
    tab.wait_for_turns(1)
    with proxy.refusing("POST /v1/responses$", 418):
        with proxy.holding("POST /v1/responses$"):
            tab.send("refused")
            tab.wait(lambda: proxy.num_waiting)
            tab.click("other-1")
            tab.wait_for_turns(1)
        tab.wait(lambda: proxy.num_refused)
    tab.type("written meanwhile")
    assert not tab.is_shown("#notice")
    tab.click("mine-1")
    tab.wait(lambda: written(tab) == "refused\n\nwritten meanwhile")
    assert "418" in tab.text("#notice")


def test_stop_before_an_answer_begins_ends_it_as_soon_as_it_has(
    tab: Tab, server: str, proxy: Proxy
) -> None:
    tab.open(proxy.url)
    tab.ask("one")
    with proxy.holding("POST /v1/responses$"):
        tab.send(f"say:</think>\n\n{LONG}")
        tab.wait(lambda: proxy.num_waiting)
        tab.click("Stop")
    tab.wait(lambda: not tab.all(".live") and not tab.is_shown("#stop"))
    kept = questions(server, shown(tab))
    assert len(kept) == len(tab.texts("article")) == len(tab.texts("article[data-turn]"))
    assert len(kept) == 2 or "one more word" in (written(tab) or "")
    if len(kept) == 2:
        assert len(tab.answers[-1]) < len(LONG) - 100
    tab.type("")
    assert tab.ask("next") == f"Answer {len(kept) + 1} to next."


def test_a_refused_message_comes_back_before_what_was_typed_meanwhile(
    tab: Tab, server: str, proxy: Proxy
) -> None:
    tab.expected = ["418"]
    tab.open(proxy.url)
    tab.ask("one")
    with proxy.refusing("POST /v1/responses$", 418):
        with proxy.holding("POST /v1/responses$"):
            tab.send("two")
            tab.wait(lambda: proxy.num_waiting)
            tab.type("three")
        tab.wait(lambda: written(tab) == "two\n\nthree")
    assert tab.answers == ["Answer 1 to one."]


def test_without_sessions_an_answer_goes_on_while_another_conversation_is_shown(tab: Tab) -> None:
    tab.expected = ["404"]
    script: list[Any] = [f"Hm.</think>\n\n{SAID}", "Hm.</think>\n\nOther."]
    with served(scripted("m2", *script, delay_seconds=0.001)) as url:
        tab.open(url)
        tab.send("tell me")
        tab.wait(lambda: "word 5." in tab.text(".live .markdown"))
        tab.click("New conversation")
        assert tab.answers == []
        assert not tab.is_shown("#stop")
        tab.click("tell me")
        assert tab.text(".live .markdown").startswith("word 0. word 1.")
        tab.click("New conversation")
        assert tab.ask("and you") == "Other."
        tab.click("tell me")
        tab.wait(lambda: tab.answers == [SAID])
        assert not tab.all(".live")


def test_another_language_keeps_the_answer_that_streams(
    tab: Tab, server: str, proxy: Proxy
) -> None:
    tab.open(proxy.url)
    tab.send(f"say:{'I think. ' * 300}</think>\n\n{SAID}")
    tab.wait(lambda: "I think." in tab.text(".live .thought-text"))
    tab.choose("#language", "de")
    assert tab.text(".live .thought-text").startswith("I think.")
    assert tab.text(".live .now") == "Jetzt antworten"
    assert tab.text(".live summary").startswith("Denkt nach")
    tab.wait(lambda: "word 5." in tab.text(".live > .markdown"))
    tab.choose("#language", "en")
    assert "word 5." in tab.text(".live > .markdown")
    tab.wait_for_turns(1)
    assert tab.answers == [SAID]


def test_the_page_begins_once_the_server_is_there(tab: Tab, server: str, proxy: Proxy) -> None:
    tab.expected = ["502"]
    with proxy.refusing("GET /v1/models", 502):
        tab.open(proxy.url, is_ready="#notice:not([hidden])")
        tab.wait(lambda: proxy.num_refused > 1)
        tab.click("Settings")
        tab.close_dialog()
        tab.type("written early")
    tab.wait(lambda: not tab.is_shown("#notice"))
    assert written(tab) == "written early"
    tab.one("#send").click()
    tab.wait(lambda: tab.answers == ["Answer 1 to written early."])
