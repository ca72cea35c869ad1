"""Hostile text: it is shown and never runs, asks for nothing and breaks nothing."""

import time
from collections.abc import Iterator

import pytest

from tests.server.page.serving import served_page
from tests.server.page.tab import Tab

pytestmark = pytest.mark.slow

EVIL = "https://evil.example"
TEXTS = {
    "script": "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>",
    "svg": "<svg onload='window.hacked = 1'><script>window.hacked = 1</script></svg>",
    "style": f"<style>@import '{EVIL}/a.css';</style><link rel=stylesheet href={EVIL}/b.css>",
    "frame": f"<iframe src='{EVIL}'></iframe><base href='{EVIL}'><form action='{EVIL}'>",
    "links": "[a](javascript:window.hacked=1) [b](data:text/html,<script>1</script>) "
    "<javascript:window.hacked=1> [c](JaVaScRiPt:window.hacked=1) [d](vbscript:x) "
    "[e](\\x01javascript:window.hacked=1) [f](file:///etc/passwd)",
    "images": f"![a]({EVIL}/a.png) ![b](javascript:window.hacked=1) ![c](data:image/svg+xml,x)",
    "references": f"[a]: javascript:window.hacked=1\n\n[a] ![a]\n\n[b]: {EVIL}/x.png\n\n![b]",
    "formulas": "$\\href{javascript:window.hacked=1}{x}$ $\\html{<b>}$ "
    f"$\\includegraphics{{{EVIL}/a.png}}$ $\\class{{a}}{{x}}$ $\\style{{color:url({EVIL})}}{{x}}$",
    "code": '```html\n<script>window.hacked = 1</script>\n```\n```" onload=x\n1\n```',
    "names": "__proto__ constructor toString ```__proto__\n1\n```",
    "directions": "\u202e\u2066 text \u200b\ufeff \x00 \x1b[31m",
}
LARGE = {
    "nested quotes": ">" * 3000 + " deep",
    "nested lists": "\n".join("  " * depth + "- x" for depth in range(400)),
    "brackets": "[" * 50_000 + "x" + "](" * 50_000,
    "stars": "*a_ **b ~~c " * 50_000,
    "open formulas": "\\( $$ \\[ $x " * 50_000,
    "backticks": " ".join("`" * number for number in range(1, 900)),
    "addresses": "www.a.b http:// a@b " * 20_000,
    "table": "|" * 1000 + "\n" + "|-" * 1000 + "\n" + ("|x" * 1000 + "\n") * 30,
    "definitions": "".join(f"[{number}]: http://a.b\n" for number in range(20_000)),
    "one line": "a" * 2**20,
    "one line of Markdown": "*a* [b](c) $d$ " * 70_000,
    "fence": "```python\n" + "x = 1\n" * 100_000,
}
COSTLY = {
    "a macro that is long": "$\\def\\a{" + "x" * 210 + "}" + "\\a" * 195 + "$",
    "macros of macros": "$$\\gdef\\a{xxxxxxxx}\\gdef\\b{"
    + "\\a" * 20
    + "}\\gdef\\c{"
    + "\\b" * 20
    + "}"
    + "\\c" * 20
    + "$$",
    "a command that is new": "$\\newcommand{\\a}[1]{#1#1#1#1}" + "\\a{" * 8 + "x" + "}" * 8 + "$",
    "a large rule": "$\\rule{1em}{100000em} \\rule{100000em}{1em}$",
    "large distances": "$\\kern{100000em}x\\hspace{99999cm}y \\raisebox{99999em}{x}$",
    "a deep formula": "$$" + "\\frac{x}{" * 300 + "y" + "}" * 300 + "$$",
    "many formulas": "$x^2$ " * 3000,
    "a line of toml": "```toml\n" + "-" * 10_000 + "\n```",
    "a line of java": "```java\n" + "a" * 10_000 + "\n```",
    "lines of java": "```java\n" + ("a" * 450 + "\n") * 11 + "```",
    "lines of toml": "```toml\n" + ("-" * 450 + "\n") * 11 + "```",
    "unclosed strings": "```js\n" + "`${" * 1600 + "\n```",
}
"""Short texts that cost much, or take much room, where nothing bounds it"""
SETTLED = """
const [text, done] = arguments;
let longest = 0;
new PerformanceObserver((list) => {
  for (const { duration } of list.getEntries()) longest = Math.max(longest, duration);
}).observe({ type: "longtask" });
import("./page/markdown.js").then(async ({ markdown }) => {
  document.getElementById("log").append(markdown(text));
  const idle = () => new Promise((resolve) => requestIdleCallback(resolve));
  const pause = () => new Promise((resolve) => setTimeout(resolve, 100));
  for (let round = 0; round < 10; round++) {
    await idle();
    await pause();
  }
  const log = document.getElementById("log");
  done([longest, log.scrollHeight, log.querySelectorAll("*").length]);
});
"""
STREAMED = """
const [text, done] = arguments;
import("./page/markdown.js").then(({ Markdown }) => {
  const piece = new Markdown();
  document.getElementById("log").append(piece.element);
  let longest = 0;
  const timed = (work) => {
    const began = performance.now();
    work();
    document.body.offsetHeight; // lays it out
    longest = Math.max(longest, performance.now() - began);
  };
  const step = Math.ceil(text.length / 40);
  for (let place = 0; place < text.length; place += step) {
    piece.add(text.slice(place, place + step));
    timed(() => piece.draw());
  }
  timed(() => piece.end());
  done([longest, piece.element.textContent.length]);
});
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served_page(tmp_path_factory.mktemp("sessions")) as url:
        yield url


def demand_harmless(tab: Tab) -> None:
    """Nothing ran, and nothing is there that could run or load."""
    assert tab.js("return window.hacked") is None
    for css in ("iframe", "object", "form form", "script:not([src^=page])", "svg", "img", "base"):
        assert not tab.all(f"main {css}"), css
    hrefs = tab.js("return [...document.querySelectorAll('#log a')].map((a) => a.href)")
    assert all(href.startswith(("https://", "http://", "mailto:")) for href in hrefs), hrefs
    handlers = tab.js(
        "return [...document.querySelectorAll('#log *')].flatMap((e) => [...e.attributes])"
        ".filter((a) => a.name.startsWith('on') || /javascript:/i.test(a.value)).length"
    )
    assert handlers == 0


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_text_is_only_shown(tab: Tab, url: str, name: str) -> None:
    tab.open(url)
    text = TEXTS[name]
    tab.ask(f"say:{text}</think>\n\n{text}")
    tab.one(".thought summary").click()
    tab.wait(lambda: tab.text(".thought-text"))
    demand_harmless(tab)
    assert tab.ask("still there") == "Answer 2 to still there."


@pytest.mark.parametrize("name", LARGE)
def test_large_text_that_streams_leaves_the_page_usable(tab: Tab, url: str, name: str) -> None:
    tab.open(url)
    longest, length = tab.chrome.execute_async_script(STREAMED, LARGE[name])
    assert longest < 5000  # milliseconds that the page does not answer; far less on a quiet machine
    assert length >= len(LARGE[name]) / 8  # signs of Markdown are not shown
    tab.type("still there", "#input")
    assert tab.one("#input").get_attribute("value") == "still there"


@pytest.mark.parametrize("name", COSTLY)
def test_costly_text_is_drawn_soon_and_small(tab: Tab, url: str, name: str) -> None:
    tab.open(url)
    longest, height, elements = tab.chrome.execute_async_script(SETTLED, COSTLY[name])
    assert longest < 2000  # milliseconds; most are far below 300 on a quiet machine
    assert height < 30_000  # pixels
    assert elements < 20_000
    if name.startswith("a line of"):
        assert not tab.all("[class^=hl-]")  # one second and more, if it were coloured


def test_a_message_with_unclosed_files_is_shown_at_once(tab: Tab, url: str) -> None:
    tab.open(url)
    text = '<file name="a">\n' * 20_000
    longest = tab.chrome.execute_async_script(
        "const [text, done] = arguments;"
        "import('./page/files.js').then(({ filesIn }) => {"
        " const began = performance.now(); const found = [...filesIn(text)].length;"
        " done(performance.now() - began + 1e6 * found) })",
        text * 10,
    )
    assert longest < 500


def test_hostile_names_are_only_shown(tab: Tab, url: str) -> None:
    tab.open(url)
    name = "<img src=x onerror='window.hacked=1'>"
    tab.ask(name)
    assert tab.text("#title") == name
    tab.click(f"Rename, save or delete: {name}")
    tab.close_dialog()
    tab.click("Branches")
    assert tab.wait(lambda: tab.texts(".node b")) == [name]
    demand_harmless(tab)


def test_the_policy_forbids_what_is_not_the_pages_own(tab: Tab, url: str) -> None:
    tab.open(url)
    tab.expected = ["Content Security Policy", "TrustedHTML", "TrustedScript", "require-trusted"]
    assert tab.js(
        "try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true }"
    )
    tab.js(
        "const s = document.createElement('img'); s.src = arguments[0]; document.body.append(s)",
        f"{EVIL}/x.png",
    )
    time.sleep(0.2)
    assert not [address for address in tab.asked() if EVIL in address]
