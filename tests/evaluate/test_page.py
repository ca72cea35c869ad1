"""The page of an evaluation: whole HTML without a script, everything escaped, of bounded size."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fulmen.agent import escaped
from fulmen.envs import Environment
from fulmen.evaluate import eval_page as page_of
from fulmen.evaluate import open_results, summarize_passes, write_page
from tests.evaluate.playing import PRESS, Buttons, Sums, every_kind, number_of, played, says

VOID = frozenset({"meta", "br", "hr"})
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</pre></details></body><script src=//evil></script>",
    "<style>@import url(http://evil)</style>",
    "\u202egnp.exe\u0000",
    "sure\U000e0053\U000e0041\U000e0059",
    "a\u00adb\u180ec\u3164d\ufe01e\ufe0ff\U000e0101g",
    "&lt;script&gt;",
)


class Checked(HTMLParser):
    """A reader that knows which tags are open."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Checked:
    found = Checked()
    found.feed(page)
    found.close()
    assert found.open == []
    return found


def assert_harmless(page: str) -> Checked:
    found = read(page)
    assert found.tags <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "pre"),
        *("table", "thead", "tbody", "tr", "th", "td", "details", "summary", "span", "b"),
    }
    assert found.attributes <= {
        *("lang", "charset", "http-equiv", "content", "name", "class", "open"),
    }
    assert "default-src 'none'" in page
    return found


def press_or_seven(request: Any) -> str:
    return PRESS if request.tools and len(request.messages) == 1 else says("It is 7.")


def test_the_page_has_tables_and_trajectories(tmp_path: Path) -> None:
    environments: dict[str, Environment] = {"sums": Sums(), "buttons": Buttons()}
    results, _ = played(tmp_path, environments, press_or_seven, num_tasks=8)
    path = write_page(results, [summarize_passes(results)])
    assert path == tmp_path / "report.html"
    text = "".join(assert_harmless(path.read_text("utf-8")).text)
    asked = "Which number is one more than 6?"
    for words in ("sums", "buttons", "task 6", asked, "It is 7.", "Hm.", "pressed", "passed"):
        assert words in text
    assert text.count(" wrong") >= 7


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_is_said_stays_text(tmp_path: Path, text: str) -> None:
    results, _ = played(tmp_path, {text: Sums()}, lambda _: says(text), num_tasks=2)
    shown = page_of(results)
    found = assert_harmless(shown)
    hidden = {one for one in text if not one.isprintable() or one in "\u3164\ufe01\ufe0f\U000e0101"}
    if not hidden:
        assert text in "".join(found.text)
    assert not hidden & set(shown)
    for one in hidden:
        assert one.encode("unicode_escape").decode() in shown


def test_symbols_may_stand_in_colour() -> None:
    assert escaped("\u26a0\ufe0f wait") == "\u26a0\ufe0f wait"
    assert escaped("\u26a0\ufe0f\ufe0f wait") == "\u26a0\ufe0f\\ufe0f wait"


def test_the_page_has_a_bounded_size_and_shows_every_kind_of_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulmen.evaluate.page._PAGE_CHARS", 20_000)

    def long(request: Any) -> Any:
        if number_of(request) % 6 in (0, 1):
            return says(f"{'<' * 2000} The answer is {number_of(request) + 1}.")
        return every_kind(request)

    results, _ = played(tmp_path, {"sums": Sums()}, long, num_tasks=60)
    shown = page_of(results)
    assert len(shown) < 20_000 + 60_000
    text = "".join(assert_harmless(shown).text)
    for kind in ("wrong", "no answer", "limit", "loop", "error", "the machine is on fire"):
        assert kind in text
    assert "more passes are in passes.jsonl" in text
    monkeypatch.setattr("fulmen.evaluate.page._STEP_CHARS", 1000)
    shown = page_of(results)
    assert "a step that is too long for this page" in shown
    assert_harmless(shown)
    monkeypatch.setattr("fulmen.evaluate.page._PASS_CHARS", 50)
    shown = page_of(results)
    assert "the rest is too long for this page" in shown
    assert_harmless(shown)


def test_an_evaluation_of_nothing_has_a_page(tmp_path: Path) -> None:
    with open_results(tmp_path, {}, {}) as results:
        assert_harmless(page_of(results))
