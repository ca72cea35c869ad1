"""Markdown looks the same however it came: in one piece or letter by letter."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.helpers import ask
from tests.server.page.serving import served_page
from tests.server.page.tab import Tab

pytestmark = pytest.mark.slow

LINES = (
    "\n\n# Head\n- item\n  - inner\n1. one\n> quote\n---\n===\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    "a | b\n```\n```python\n`````\nx = 1\n    code\n$$\n- c\n\\[\n\\]\n[a]: https://a.example\n"
    "[t][a]\n+ x\n"
).splitlines(keepends=True)
SIGNS = (
    "word| |#|- |***|---|$$|$x$|**bold**|*|`c`|\r|\r\n|[a]|[b](https://b.example)|<b>|\\|\t|~~|ü|😀"
)
PARTS = [*LINES, *SIGNS.split("|")]
"""Pieces that mean something together, or not"""
NUM_TEXTS = 1000
BOTH = """
const [texts, done] = arguments;
import("./page/markdown.js").then(({ Markdown, markdown }) => {
  done(JSON.stringify(JSON.parse(texts).map(([text, cuts]) => {
    const piece = new Markdown();
    let start = 0;
    for (const end of [...cuts, text.length]) {
      piece.add(text.slice(start, end));
      piece.draw();
      start = end;
    }
    piece.end();
    return [piece.element.innerHTML, markdown(text).innerHTML];
  })));
});
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served_page(tmp_path_factory.mktemp("sessions")) as url:
        yield url


def both(tab: Tab, *texts: tuple[str, list[int]]) -> list[tuple[str, str]]:
    """Return how texts look that streamed, cut at these places, and in one piece."""
    found: list[tuple[str, str]] = json.loads(
        tab.chrome.execute_async_script(BOTH, json.dumps(texts))
    )
    return found


def any_text(seed: int) -> tuple[str, list[int]]:
    """Return a text and places in it."""
    chance = random.Random(seed)
    text = "".join(chance.choices(PARTS, k=chance.randrange(1, 40)))
    length = len(text.encode("utf-16-le")) // 2
    return text, sorted(chance.randrange(length + 1) for _ in range(chance.randrange(25)))


def test_any_text_that_streamed_looks_as_it_would_in_one_piece(tab: Tab, url: str) -> None:
    tab.open(url)
    texts = [any_text(seed) for seed in range(NUM_TEXTS)]
    for (text, cuts), (streamed, whole) in zip(texts, both(tab, *texts), strict=True):
        assert streamed == whole, (text, cuts)


@pytest.mark.parametrize(
    "text",
    [
        "para\n$$\na\n- b\n$$\n\nmore",
        "para\n$$\na\n- b\n\nmore",
        "- item\n$$\na\n# h\n$$\n",
        "para\n#hashtag\n",
        "para\na | b\n---|---\n1 | 2\n\nend",
        "[a] first\n\n# head\n\n[a]: https://a.example\n",
        "one\rtwo\r\rthree\r\nfour\r",
        "para\n***bold***\n",
        "# a\n\n[x]: /u\n'title\nmore'\n\nend\n",
    ],
)
def test_text_that_comes_letter_by_letter_looks_the_same(tab: Tab, url: str, text: str) -> None:
    tab.open(url)
    ((streamed, whole),) = both(tab, (text, list(range(1, len(text)))))
    assert streamed == whole


def test_long_text_keeps_its_form_however_it_comes(tab: Tab, url: str) -> None:
    tab.open(url)
    section = "## Head\n\nSome **bold** text.\n\n- one\n- two\n\n```python\nx = 1\n```\n\n"
    text = section * 2000  # characters of 36 full blocks
    long_block = f"# Head\n\n{'word ' * 20_000}\n\n# after\n"
    (streamed, whole), plain = both(
        tab,
        (text, list(range(7, len(text), 30_011))),
        (long_block, list(range(7, len(long_block), 9973))),
    )
    assert streamed == whole
    assert whole.count("<h3>") == 2000
    assert plain[0] == plain[1]
    assert plain[0].count('class="plain"') == 1
    assert plain[0].startswith("<h2>Head</h2>")


def test_a_long_answer_is_markdown_after_a_reload_too(tab: Tab, tmp_path: Path) -> None:
    said = "Some **bold** text.\n\n" * 3000
    with served_page(tmp_path / "sessions") as url:
        messages = [
            {"role": "user", "content": "long"},
            {"role": "assistant", "content": said, "reasoning_content": said},
        ]
        assert ask(url, "/v1/sessions", {"name": "long", "messages": messages}).status == 200
        tab.open(f"{url}/#long")
        tab.wait_for_turns(1)
        assert (
            tab.js("return document.querySelectorAll('.answer > .markdown strong').length") == 3000
        )
        tab.one(".thought summary").click()
        tab.wait(
            lambda: tab.js("return document.querySelectorAll('.thought strong').length") == 3000
        )
