"""The page and what lies between it and the server: keys, paths, lost connections; and how much it
loads."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fulmen.server.page_files import page_files
from tests.server.helpers import scripted, served
from tests.server.page.proxy import behind
from tests.server.page.serving import echo, served_page
from tests.server.page.tab import Tab

KEY = "a-key-of-twenty-letters"


def test_the_page_has_less_than_half_a_megabyte() -> None:
    assert sum(len(file.content) for file in page_files().values()) < 500_000


@pytest.mark.slow
def test_a_key_is_asked_for_once_and_kept_for_the_tab(tab: Tab, tmp_path: Path) -> None:
    tab.expected = ["401"]
    with served_page(tmp_path / "sessions", api_keys=(KEY,)) as url:
        tab.open(url, is_ready="#dialog input")
        assert "needs an API key" in tab.text("#dialog-body")
        assert tab.violations() == []
        tab.keys("Esc", "Esc", "Esc")
        assert not tab.is_shown("#dialog-close")
        tab.type("wrong", "#dialog input")
        tab.click("Save", "#dialog")
        tab.wait(lambda: "does not know this key" in tab.text("#dialog-body"))
        tab.type("schlüssel-€", "#dialog input")
        tab.keys("Enter")
        tab.wait(lambda: tab.one("#dialog input").get_attribute("value") == "")
        assert tab.js("return sessionStorage.length") == 0
        tab.type(KEY, "#dialog input")
        tab.keys("Enter")
        tab.wait(lambda: not tab.is_shown("#dialog"))
        assert tab.ask("hello") == "Answer 1 to hello."
        tab.reload()
        assert not tab.is_shown("#dialog")
        tab.wait(lambda: tab.answers == ["Answer 1 to hello."])
        assert tab.js("return [localStorage.length, document.cookie]") == [0, ""]


@pytest.mark.slow
def test_the_page_works_behind_a_path(tab: Tab, tmp_path: Path) -> None:
    with served_page(tmp_path / "sessions") as url, behind(url, "/deep/down") as proxy:
        tab.open(proxy.url)
        assert tab.ask("say:</think>\n\n```python\nx = 1\n```\n\n$x$") == "pythonCopyx = 1\nx"
        tab.wait(lambda: tab.all(".hl-number") and tab.all("math"))
        tab.reload()
        tab.wait(lambda: tab.all(".hl-number") and tab.all("math"))
        assert {urlsplit(address).path.split("/")[1] for address in tab.asked()} <= {
            "deep",
            "blank",
            "",
        }


@pytest.mark.slow
def test_an_answer_goes_on_when_the_connection_is_back(tab: Tab, tmp_path: Path) -> None:
    tab.expected = ["net::ERR_"]
    text = "".join(f"word {number}. " for number in range(500)).strip()
    with served_page(tmp_path / "sessions") as url, behind(url) as proxy:
        tab.open(proxy.url)
        tab.send(f"say:Hm.</think>\n\n{text}")
        tab.wait(lambda: "word 20." in tab.text(".live .markdown"))
        proxy.cut()
        tab.wait(lambda: "The connection is gone" in tab.text(".live .status"))
        tab.wait(lambda: proxy.num_refused)
        proxy.mend()
        tab.wait_for_turns(1)
        assert tab.answers == [text]


@pytest.mark.slow
def test_a_refused_request_is_told_and_the_text_given_back(tab: Tab, tmp_path: Path) -> None:
    tab.expected = ["400"]
    with served_page(tmp_path / "sessions") as url:
        tab.open(url)
        tab.ask("one")
        tab.click("Settings")
        tab.type("3", "#set-temperature")
        tab.js("document.getElementById('set-temperature').max = 9")
        tab.click("Save", "#dialog")
        tab.wait(lambda: not tab.is_shown("#dialog"))
        tab.send("two")
        tab.wait(lambda: "temperature" in tab.text("#notice"))
        assert tab.one("#input").get_attribute("value") == "two"
        tab.click("Answer again", "article")
        tab.wait(lambda: "temperature" in tab.text("#notice"))
        tab.wait(lambda: tab.answers == ["Answer 1 to one."])
        assert not tab.all(".branches")
        assert tab.one("#input").get_attribute("value") == "two"


@pytest.mark.slow
def test_without_sessions_a_conversation_stays_until_the_page_is_closed(tab: Tab) -> None:
    tab.expected = ["404"]
    script = ["Hm.</think>\n\nOne.", "Hm.</think>\n\nTwo.", "Hm.</think>\n\nThree."]
    with served(scripted("m2", *script)) as url:
        tab.open(url)
        assert "keeps no conversations" in tab.text("#notice")
        assert tab.ask("first") == "One."
        assert tab.ask("second") == "Two."
        assert tab.text(".count")
        tab.click("Answer again", "article:nth-of-type(2)")
        tab.wait(lambda: tab.answers == ["One.", "Three."])
        assert tab.text(".branches span") == "2 / 2"
        tab.click("Previous branch")
        tab.wait(lambda: tab.answers == ["One.", "Two."])


@pytest.mark.slow
def test_a_thought_is_ended_softly_and_the_answer_comes(tab: Tab) -> None:
    tab.expected = ["404"]
    thought = "I think. " * 2000
    with served(scripted("m2", f"{thought}</think>\n\nDone.", delay_seconds=0.005)) as url:
        tab.open(url)
        tab.send("hello")
        tab.wait(lambda: "I think." in tab.text(".live .thought-text"))
        tab.keys("Ctrl+Enter")
        tab.wait_for_turns(1)
        assert tab.answers == ["Done."]
        tab.one(".thought summary").click()
        assert 9 < len(tab.text(".thought-text")) < len(thought) / 2


@pytest.mark.slow
def test_the_first_paint_comes_soon(tab: Tab, tmp_path: Path) -> None:
    with served_page(tmp_path / "sessions", echo) as url:
        tab.open(url)
        painted = tab.js(
            "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        )
        assert 0 < painted < 5000  # milliseconds; far below one second on a quiet machine
