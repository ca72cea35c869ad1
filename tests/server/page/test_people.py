"""The page for everybody: keyboard only, screen readers, dark, phones, German."""

import re
from collections.abc import Iterator

import pytest
from selenium.webdriver import ActionChains

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
    files = [path for path in FOLDER.iterdir() if path.suffix in (".js", ".html")]
    text = "".join(path.read_text() for path in files).replace((FOLDER / "i18n.js").read_text(), "")
    text += (FOLDER / "i18n.js").read_text().partition("export let language")[2]
    assert len(words) > 90
    assert [name for name in words if f'"{name}"' not in text] == []
    used = re.findall(r'(?:say|button)\("([\w-]+)"|data-(?:say|label|placeholder)="([\w-]+)"', text)
    assert {a or b for a, b in used} <= set(words)
    assert all(english.strip() and german.strip() for english, german in words.values())


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


BODY = "document.body"
"""Answer of `focused` where nothing has the focus"""


def tabbed_to(tab: Tab, words: str, key: str = "Tab") -> None:
    """Press Tab until something has the focus."""
    seen = []
    for _ in range(80):
        tab.keys(key)
        seen.append(tab.focused)
        if seen[-1] == words:
            return
    raise AssertionError(f"Tab does not reach {words!r} but {seen}")


@pytest.mark.slow
def test_tab_reaches_all_and_the_focus_is_never_lost(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.keys(*"first", "Enter")
    tab.wait_for_turns(1)
    for words in ("tree-button", "settings-button", "new", "search", "model-button", "language"):
        tabbed_to(tab, words)
    for words in ("Edit", "Copy", "Answer again", "Tokens", "Branch from here", "input", "send"):
        tabbed_to(tab, words)
    tabbed_to(tab, "Answer again", "Shift+Tab")
    tab.keys("Enter")
    tab.wait(lambda: tab.texts(".branches span") == ["2 / 2"])
    tab.wait_for_turns(1)
    assert tab.focused != BODY
    tabbed_to(tab, "Next branch")
    tab.keys("Enter")
    tab.wait(lambda: tab.texts(".branches span") == ["1 / 2"])
    assert tab.focused == "Next branch"
    tab.keys("Enter")
    tab.wait(lambda: tab.texts(".branches span") == ["2 / 2"])
    assert tab.focused == "Next branch"
    tabbed_to(tab, "Edit", "Shift+Tab")
    tab.keys("Enter")
    tab.wait(lambda: tab.focused == "Edit")  # the field's name
    tab.keys("Esc")
    assert tab.js("return document.activeElement.tagName") == "BUTTON"
    assert tab.focused == "Edit"
    tab.keys("Enter", "Tab", "Tab")
    assert tab.focused == "Cancel"
    tab.keys("Enter")
    assert tab.focused == "Edit"


@pytest.mark.slow
def test_dialogs_are_used_with_keys_and_give_the_focus_back(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask("older")
    tab.keys("Ctrl+Shift+o")
    tab.ask("say:</think>\n\nabcdef")
    tabbed_to(tab, "settings-button")
    tab.keys("Enter")
    tab.wait(lambda: tab.is_shown("#dialog"))
    tabbed_to(tab, "set-temperature")
    tab.keys(*"0.5", "Enter")
    tab.wait(lambda: not tab.is_shown("#dialog"))
    assert tab.focused == "settings-button"
    name = "Rename, save or delete: say:</think>\n\nabcdef"
    tabbed_to(tab, name)
    tab.keys("Enter")
    tab.wait(lambda: tab.focused == "Title")
    tab.keys(*"Letters", "Enter")
    tab.wait(lambda: not tab.is_shown("#dialog") and tab.text("#title") == "Letters")
    tab.wait(lambda: tab.focused == "Rename, save or delete: Letters")
    tabbed_to(tab, "older")
    tab.keys("Enter")
    tab.wait(lambda: tab.answers == ["Answer 1 to older."])
    tab.wait(lambda: tab.focused == "older")
    tabbed_to(tab, "Letters", "Shift+Tab")
    tab.keys("Enter")
    tab.wait(lambda: tab.answers == ["abcdef"])
    tabbed_to(tab, "Tokens")
    tab.keys("Enter")
    tab.one(".token")
    tabbed_to(tab, "</think>")
    tab.keys("End", "Left", "Left", "Left", "Enter")
    assert tab.text(".detail code") == "d"
    tabbed_to(tab, "Branch from here", "Shift+Tab")
    tab.keys("Enter")
    tab.wait(lambda: tab.answers == ["abc and so on."])
    assert tab.focused != BODY


@pytest.mark.slow
def test_a_clicked_token_stays_so_that_its_alternatives_can_be_clicked(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask("say:</think>\n\nabcdef")
    tab.click("Tokens")
    tab.one(".token")
    tokens = dict(zip(tab.texts(".token"), tab.all(".token"), strict=True))
    tab.mouse(tokens["a"], tokens["d"])
    assert tab.text(".detail code") == "d"
    alternative = tab.all(".detail p:nth-child(2) button")[0]
    tab.mouse(tokens["c"], tokens["b"], tokens["a"], alternative)
    tab.wait(lambda: tab.texts(".branches span") == ["2 / 2"])
    tab.wait_for_turns(1)
    assert tab.answers[0].startswith("abc")
    assert tab.answers[0].endswith(" and so on.")


@pytest.mark.slow
def test_tokens_of_a_long_answer_are_shown_in_pages(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask(f"say:</think>\n\n{LONG}")
    tab.click("Tokens")
    tab.one(".token")
    assert len(tab.all(".token")) == 2000
    assert len(tab.texts("#dialog option")) == 4
    tab.js("document.querySelector('.token').focus()")
    tab.keys("End", "Right")
    tab.wait(lambda: len(tab.all(".token")) == 2000)
    assert tab.js("return document.querySelector('#dialog select').value") == "1"
    tab.choose("#dialog select", "3")
    tab.wait(lambda: 0 < len(tab.all(".token")) < 2000)
    assert tab.violations() == []


@pytest.mark.slow
def test_single_keys_can_be_switched_off_and_buttons_keep_theirs(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask("one")
    tab.js("document.querySelector('.answer .tools button').focus()")
    tab.keys("r")
    tab.keys("?")
    tab.one("#single-keys").click()
    tab.keys("Esc")
    tab.wait(lambda: not tab.is_shown("#dialog"))
    tab.js("document.activeElement.blur()")
    tab.keys("r")
    tab.keys("?")
    assert not tab.is_shown("#dialog")
    assert not tab.is_shown("#stop")
    assert not tab.all(".branches")


@pytest.mark.slow
def test_a_dialog_closes_by_a_click_beside_it_and_not_by_a_selection(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.click("Settings")
    tab.type("typed", "#set-system")
    chain = ActionChains(tab.chrome).move_to_element(tab.one("#set-system")).click_and_hold()
    chain.move_by_offset(-500, 0).release().perform()
    assert tab.one("#set-system").get_attribute("value") == "typed"
    ActionChains(tab.chrome).move_to_element(tab.one("#set-system")).move_by_offset(
        -500, 0
    ).click().perform()
    tab.wait(lambda: not tab.is_shown("#dialog"))


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
def test_a_small_phone_has_room_for_the_conversation(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.ask("Was ist ein Gewitter?")
    tab.choose("#language", "de")
    tab.resize(360, 640)
    assert tab.js("return document.getElementById('composer').offsetHeight") < 130
    assert tab.js("return document.getElementById('title').clientWidth") > 100
    assert tab.violations() == []


@pytest.mark.slow
def test_enter_begins_a_line_where_fingers_write(tab: Tab, url: str) -> None:
    touch = "Emulation.setTouchEmulationEnabled"
    tab.chrome.execute_cdp_cmd(touch, {"enabled": True, "maxTouchPoints": 1})
    tab.resize(390, 800, is_phone=True)
    try:
        tab.open(url)
        assert tab.js("return matchMedia('(hover: none) and (pointer: coarse)').matches")
        tab.one("#input").click()
        tab.keys(*"one", "Enter", *"two")
        assert tab.one("#input").get_attribute("value") == "one\ntwo"
        assert "Shift" not in tab.text("#empty")
        tab.one("#send").click()
        tab.wait_for_turns(1)
    finally:
        tab.chrome.execute_cdp_cmd(touch, {"enabled": False})


@pytest.mark.slow
def test_nothing_moves_for_who_wants_no_motion(tab: Tab, url: str) -> None:
    tab.open(url)
    moving = (
        "return [...document.querySelectorAll('*')].filter((e) => { const s = getComputedStyle(e);"
        " return parseFloat(s.transitionDuration) || parseFloat(s.animationDuration) }).length"
    )
    for wish, is_still in (("reduce", True), ("no-preference", False)):
        features = [{"name": "prefers-reduced-motion", "value": wish}]
        tab.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        assert (tab.js(moving) == 0) is is_still
    assert (
        tab.chrome.execute_async_script(
            "import('./page/i18n.js').then((m) => arguments[0](m.tokens(1) + m.tokens(2)))"
        )
        == "1 token2 tokens"
    )


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
    tab.click("Tastenkürzel")
    assert "Strg+K" in tab.texts("#dialog kbd")
    assert "Umschalt+Enter" in tab.texts("#dialog kbd")
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
