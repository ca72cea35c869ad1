"""The page for everybody: keyboard only, screen readers, dark, phones, German."""

import re
from collections.abc import Iterator

import pytest

from fulmen.server.page_files import FOLDER
from tests.server.helpers import ask
from tests.server.page.serving import LONG, served_page
from tests.server.page.tab import Tab

RICH = (
    "I compare.</think>\n\n# Head\n\nText with **bold**, `code`, [a link](https://example.com) "
    "and $x^2$.\n\n"
    "- one\n- two\n\n> quoted\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n```python\ndef f(x):  # why\n"
    "    return 'text', 1\n```\n\n$$\\sum_{i=1}^n i$$"
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served_page(tmp_path_factory.mktemp("sessions")) as url:
        yield url


def test_every_word_is_used_and_in_both_languages() -> None:
    words = {
        name: (english, german)
        for name, english, german in re.findall(
            r'^  "([\w-]+)": \["(.*)", "(.*)"\],$', (FOLDER / "i18n.js").read_text(), re.M
        )
    }
    others = [path for path in FOLDER.iterdir() if path.suffix in (".js", ".html")]
    text = "".join(path.read_text() for path in others if path.name != "i18n.js")
    assert len(words) > 90
    assert [name for name in words if f'"{name}"' not in text] == []
    used = re.findall(r'(?:say|button)\("([\w-]+)"|data-(?:say|label|placeholder)="([\w-]+)"', text)
    assert {a or b for a, b in used} <= set(words)
    assert all(english.strip() and german.strip() for english, german in words.values())


def test_html_has_no_inline_script_or_style() -> None:
    html = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=|https?://", html)


@pytest.mark.slow
@pytest.mark.parametrize("appearance", ["light", "dark"])
@pytest.mark.parametrize("size", [(1200, 900), (390, 800)], ids=["desktop", "phone"])
def test_axe_finds_nothing(tab: Tab, url: str, appearance: str, size: tuple[int, int]) -> None:
    tab.resize(*size)
    tab.open(url)
    tab.js("localStorage.setItem('fulmen-appearance', arguments[0])", appearance)
    tab.reload()
    assert tab.violations() == [], "the empty page"
    tab.ask(f"say:{RICH}")
    tab.wait(lambda: tab.all(".hl-keyword") and tab.all("math"))
    tab.click("Edit", ".user")
    tab.click("Send as a new branch")
    tab.wait(lambda: tab.texts(".branches span") == ["2 / 2"])
    tab.wait_for_turns(1)
    tab.one(".thought summary").click()
    tab.wait(lambda: tab.text(".thought-text"))
    assert tab.violations() == [], "a conversation"
    for words in ("Branches", "Settings", "Compare", "Tokens"):
        tab.click(words)
        tab.one("#dialog")
        assert tab.violations() == [], words
        tab.close_dialog()
    if size[0] < 800:
        tab.click("Conversations and settings")
    assert tab.violations() == [], "the menu"
    for words in ("Model", "Shortcuts", "Rename, save or delete: "):
        button = next(b for b in tab.all("#sidebar button") if words in label_of(b))
        button.click()
        tab.one("#dialog")
        assert tab.violations() == [], words
        if words.startswith("Rename"):
            tab.click("Delete", "#dialog")
            assert tab.violations() == [], "a question"
        tab.close_dialog()


def label_of(button: object) -> str:
    return f"{button.text}{button.get_attribute('aria-label')}"  # type: ignore[attr-defined]


@pytest.mark.slow
def test_axe_finds_nothing_while_an_answer_streams_or_a_key_is_needed(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.send(f"say:{'Hm. ' * 400}</think>\n\n{LONG}")
    tab.wait(lambda: tab.text(".live .thought-text"))
    assert tab.violations() == []
    tab.wait(lambda: tab.text(".live > .markdown"))
    assert tab.violations() == []
    tab.click("Stop")
    tab.wait_for_turns(1)


@pytest.mark.slow
def test_all_is_done_with_the_keyboard_alone(tab: Tab, url: str) -> None:
    tab.open(url)
    assert tab.focused == "input"
    tab.keys(*"first", "Enter")
    tab.wait_for_turns(1)
    tab.keys(*"second", "Shift+Enter", *"line", "Enter")
    tab.wait_for_turns(2)
    assert tab.answers[-1].replace("\n", " ") == "Answer 2 to second line."
    tab.keys("Up", "End", *"!", "Ctrl+Enter")
    tab.wait(lambda: tab.texts(".branches span") == ["2 / 2"])
    tab.wait_for_turns(2)
    tab.js("document.activeElement.blur()")
    tab.keys("k")
    tab.keys("h")
    tab.wait(lambda: tab.texts(".branches span") == ["1 / 2"])
    tab.keys("l")
    tab.wait(lambda: tab.texts(".branches span") == ["2 / 2"])
    tab.keys("r")
    tab.wait(lambda: tab.texts(".branches span") == ["3 / 3"])
    tab.wait_for_turns(2)
    tab.keys("?")
    assert "Ctrl+K" in tab.text("#dialog")
    tab.keys("Esc")
    tab.wait(lambda: not tab.is_shown("#dialog"))
    tab.keys("/")
    assert tab.focused == "input"
    tab.keys("Ctrl+k")
    assert tab.focused == "search"
    tab.keys("Ctrl+b")
    tab.wait(lambda: not tab.is_shown("#sidebar"))
    tab.keys("Ctrl+b")
    tab.keys("Ctrl+Shift+o")
    tab.wait(lambda: tab.answers == [])
    tab.keys(*"say:", *"</think>", *"aaaa ", "Enter")
    tab.wait_for_turns(1)


@pytest.mark.slow
def test_escape_stops_and_tokens_are_walked_with_arrows(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.send(f"say:</think>\n\n{LONG}")
    tab.wait(lambda: tab.text(".live .markdown"))
    tab.keys("Esc")
    tab.wait_for_turns(1)
    tab.click("New conversation")
    tab.ask("say:</think>\n\nabcdef")
    tab.click("Tokens")
    tab.one(".token").click()
    tab.keys("End", "Left", "Left")
    assert tab.text(".detail code") == "e"
    tab.keys("Home")
    assert tab.text(".detail code") == "</think>"


@pytest.mark.slow
def test_a_phone_has_no_sideways_scroll(tab: Tab, url: str) -> None:
    tab.resize(360, 700)
    tab.open(url)
    wide = "| " + " | ".join("column" for _ in range(30)) + " |\n|" + "---|" * 30
    tab.ask(f"say:Hm.</think>\n\n{RICH}\n\n{wide}\n\n```\n{'x' * 500}\n```\n\n{'y' * 500}")

    def overflow(css: str = "html") -> int:
        script = (
            "return ((e) => e.scrollWidth - e.clientWidth)(document.querySelector(arguments[0]))"
        )
        return int(tab.js(script, css))

    assert overflow() <= 0
    assert (
        tab.js(
            "const m = document.getElementById('scroller'); return m.scrollWidth - m.clientWidth"
        )
        <= 0
    )
    assert not tab.is_shown("#sidebar")
    tab.click("Conversations and settings")
    assert tab.is_shown("#sidebar")
    assert overflow() <= 0
    tab.one("button.conversation").click()
    tab.wait(lambda: not tab.is_shown("#sidebar"))
    for words in ("Settings", "Branches", "Tokens"):
        tab.click(words)
        assert overflow() <= 0
        assert (
            tab.js(
                "const d = document.getElementById('dialog'); return d.scrollWidth - d.clientWidth"
            )
            <= 0
        )
        tab.close_dialog()


@pytest.mark.slow
def test_dark_is_the_systems_wish_or_a_persons(tab: Tab, url: str) -> None:
    tab.open(url)

    def is_dark() -> bool:
        colour = tab.js("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) < 200

    assert not is_dark()
    tab.choose("#appearance", "dark")
    assert is_dark()
    tab.reload()
    assert is_dark()
    tab.choose("#appearance", "")
    assert not is_dark()
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    tab.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert is_dark()
    tab.choose("#appearance", "light")
    assert not is_dark()
    tab.choose("#appearance", "")


@pytest.mark.slow
def test_the_page_speaks_german(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.choose("#language", "de")
    assert tab.js("return document.documentElement.lang") == "de"
    assert tab.text("#new") == "Neues Gespräch"
    tab.send(f"say:{'Hm. ' * 300}</think>\n\nJa.")
    tab.wait(lambda: tab.text(".live summary").startswith("Denkt nach"))
    tab.wait_for_turns(1)
    assert tab.text(".thought summary") == "Gedankengang · 1.201 Token"
    tab.click("Einstellungen")
    assert "Systemanweisung" in tab.text("#dialog")
    tab.close_dialog()
    tab.reload()
    assert tab.text("#send") == "Senden"
    assert tab.violations() == []


def to_end(tab: Tab) -> list[float]:
    """Return how far the log is scrolled, and how far its end is."""
    found: list[float] = tab.js(
        "const s = document.getElementById('scroller');"
        "return [s.scrollTop, s.scrollHeight - s.clientHeight - s.scrollTop]"
    )
    return found


@pytest.mark.slow
def test_scrolling_never_jumps_while_an_answer_streams(tab: Tab, url: str) -> None:
    tab.open(url)
    lines = "\n\n".join(f"Paragraph {number}." for number in range(400))
    tab.send(f"say:Hm.</think>\n\n{lines}")
    tab.wait(lambda: "Paragraph 40." in tab.text(".live .markdown"))

    assert to_end(tab)[1] < 80  # it follows
    tab.js("document.getElementById('scroller').scrollTop = 120")
    tab.wait(lambda: "Paragraph 80." in tab.text(".live .markdown"))
    assert abs(to_end(tab)[0] - 120) < 2
    assert tab.button("New text below").is_displayed()
    tab.wait_for_turns(1)
    assert abs(to_end(tab)[0] - 120) < 2


@pytest.mark.slow
def test_a_thousand_turns_open_at_the_end_and_only_what_is_near_is_laid_out(
    tab: Tab, url: str
) -> None:
    messages = [
        {"role": role, "content": f"{role} **{number}**"}
        for number in range(1000)
        for role in ("user", "assistant")
    ]
    made = ask(url, "/v1/sessions", {"name": "long", "messages": messages})
    assert made.status == 200, made.text
    tab.open(f"{url}/#long")
    tab.wait(lambda: tab.answers and tab.answers[-1] == "assistant 999")

    def laid_out() -> int:
        return int(
            tab.js(
                "return [...document.querySelectorAll('article > section')].filter((e) =>"
                " e.checkVisibility({contentVisibilityAuto: true})).length"
            )
        )

    tab.wait(lambda: 0 < laid_out() < 60)
    assert to_end(tab)[1] < 80
    for place in (0, 20_000, 50_000):
        tab.js("document.getElementById('scroller').scrollTop = arguments[0]", place)
        tab.wait(lambda: 0 < laid_out() < 60)
    assert len(tab.texts("article[data-turn]")) == 1000
