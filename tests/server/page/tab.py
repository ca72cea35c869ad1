"""A tab of the browser, in the words of a person who looks at the page."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

R = TypeVar("R")
AXE = Path(__file__).parent / "axe.min.js"
_WAIT_SECONDS = 60.0


class Tab:
    """One page in the browser."""

    def __init__(self, chrome: Chrome, downloads: Path) -> None:
        self.chrome = chrome
        self.downloads = downloads
        self.hosts: set[str] = set()
        """Servers that the page may ask"""
        self.expected: list[str] = []
        """Parts of console messages that belong to the test"""

    # ---- going there

    def open(self, url: str, *, is_ready: str = "#conversations li") -> None:
        """Load the page, and wait until an element is there."""
        self.hosts.add(urlsplit(url).netloc)
        self.chrome.get("about:blank")
        origin = f"{urlsplit(url).scheme}://{urlsplit(url).netloc}"
        self.chrome.execute_cdp_cmd(
            "Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "local_storage"}
        )
        self.chrome.get(url)
        self.wait(lambda: self.all(is_ready), f"the page has no {is_ready}")

    def reload(self) -> None:
        self.chrome.refresh()
        self.wait(lambda: self.all("#conversations li"))

    # ---- looking

    def wait(self, seen: Callable[[], R], otherwise: str = "it did not come") -> R:
        """Return the first true answer of a look at the page."""
        ends_at = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < ends_at:
            try:
                if found := seen():
                    return found
            except StaleElementReferenceException:
                pass
            time.sleep(0.03)
        notice = self.js("return document.getElementById('notice')?.textContent")
        raise AssertionError(f"{otherwise}; notice: {notice!r}; console: {self.messages()}")

    def all(self, css: str) -> list[WebElement]:
        return self.chrome.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> WebElement:
        """Return the first element that is shown, once there is one."""
        return self.wait(
            lambda: [found for found in self.all(css) if found.is_displayed()],
            f"no {css} is shown",
        )[0]

    def text(self, css: str) -> str:
        return str(self.one(css).text)

    def texts(self, css: str) -> list[str]:
        """Return the texts of all such elements, shown or out of sight."""
        found: list[str] = self.js(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", css
        )
        return found

    def is_shown(self, css: str) -> bool:
        return any(found.is_displayed() for found in self.all(css))

    def js(self, script: str, *values: Any) -> Any:
        return self.chrome.execute_script(script, *values)

    @property
    def answers(self) -> list[str]:
        """Texts of the answers that are whole."""
        return self.texts("article[data-turn] .answer > .markdown")

    @property
    def focused(self) -> str:
        """The id, the label or the text of what has the focus."""
        return str(
            self.js(
                "const e = document.activeElement;"
                "if (e === document.body) return 'document.body';"
                "return e.id || e.getAttribute('aria-label') || e.textContent"
            )
        )

    # ---- doing

    def button(self, words: str, within: str = "body") -> WebElement:
        """Return the button with this text or label."""

        def find() -> list[WebElement]:
            return [
                found
                for found in self.all(f"{within} button")
                if words in (found.text.strip(), found.get_attribute("aria-label"))
                and found.is_displayed()
            ]

        return self.wait(find, f"there is no button {words!r} in {within}")[0]

    def click(self, words: str, within: str = "body") -> None:
        self.button(words, within).click()

    def keys(self, *keys: str) -> None:
        """Press keys, together those that are given as one text of Keys."""
        chain = ActionChains(self.chrome)
        for key in keys:
            *held, last = key.split("+") if len(key) > 1 else [key]
            names = {"Ctrl": Keys.CONTROL, "Shift": Keys.SHIFT, "Esc": Keys.ESCAPE}
            names |= {"Enter": Keys.ENTER, "Tab": Keys.TAB, "Up": Keys.UP, "End": Keys.END}
            names |= {"Left": Keys.LEFT, "Right": Keys.RIGHT, "Home": Keys.HOME}
            for each in held:
                chain.key_down(names[each])
            chain.send_keys(names.get(last, last))
            for each in reversed(held):
                chain.key_up(names[each])
        chain.perform()

    def type(self, text: str, css: str = "#input") -> None:
        """Put a text of any length into a field, as typing would."""
        self.js(
            "const [e, text] = arguments; e.focus(); e.value = text;"
            "e.dispatchEvent(new Event('input', {bubbles: true}));"
            "e.dispatchEvent(new Event('change', {bubbles: true}))",
            self.one(css),
            text,
        )

    def send(self, text: str) -> None:
        self.type(text)
        self.one("#send").click()

    def ask(self, text: str) -> str:
        """Send a text, wait for the whole answer and return it."""
        before = self.js("return document.querySelectorAll('article[data-turn]').length")
        self.send(text)
        self.wait_for_turns(before + 1)
        return self.answers[-1] if self.answers else ""

    def wait_for_turns(self, number: int) -> None:
        """Wait until the branch has so many turns and nothing runs."""
        self.wait(
            lambda: (
                len(self.texts("article[data-turn]")) == number
                and not self.is_shown("#stop")
                and not self.all(".live")
            ),
            f"there are no {number} whole turns",
        )

    def edit(self, text: str, place: int = 1) -> None:
        """Send the question of the turn at a place again, with another text."""
        self.click("Edit", f"article:nth-of-type({place}) .user")
        self.type(text, "textarea.edit")
        self.click("Send as a new branch")

    def mouse(self, *elements: WebElement) -> None:
        """Move the mouse to elements, one after the other, and click the last one."""
        chain = ActionChains(self.chrome)
        for element in elements:
            chain.move_to_element(element)
        chain.click().perform()

    def requests_not_sent(self) -> None:
        """Refuse what the page sends from now on, and note it for `sent`."""
        self.js(
            "window.sent = []; const asked = window.fetch;"
            "window.fetch = (url, options) => {"
            " if (options.method !== 'POST' || !/responses$/.test(url)) return asked(url, options);"
            " sent.push(JSON.parse(options.body));"
            " return Promise.resolve(new Response('{}', {status: 418})); }"
        )

    @property
    def sent(self) -> list[Any]:
        """Bodies of the requests for answers since `requests_not_sent`."""
        found: list[Any] = self.js("return window.sent")
        return found

    def choose(self, css: str, value: str) -> None:
        self.type(value, css)

    def close_dialog(self) -> None:
        self.one("#dialog-close").click()
        self.wait(lambda: not self.is_shown("#dialog"))

    def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """Look at the page on a screen of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def downloaded(self, ending: str) -> str:
        """Return the text of the file that was saved last."""
        found = self.wait(
            lambda: [p for p in self.downloads.iterdir() if p.name.endswith(ending)],
            f"no {ending} was saved",
        )
        return found[0].read_text(encoding="utf-8")

    # ---- judging

    def violations(self) -> list[str]:
        """Return what axe finds wrong with what is shown now."""
        self.chrome.execute_cdp_cmd(
            "Runtime.evaluate", {"expression": AXE.read_text(encoding="utf-8")}
        )
        found = self.chrome.execute_async_script(
            "const done = arguments[0];"
            "axe.run(document, {resultTypes: ['violations']}).then((r) => done(r.violations))"
        )
        return [
            f"{each['id']}: {node['target']} {node['failureSummary']}"
            for each in found
            for node in each["nodes"]
        ]

    def messages(self) -> list[str]:
        """Return the console's new warnings and errors."""
        log = self.chrome.get_log("browser")  # type: ignore[no-untyped-call]
        return [
            entry["message"]
            for entry in log
            if entry["level"] in ("WARNING", "SEVERE")
            and not any(part in entry["message"] for part in self.expected)
        ]

    def asked(self) -> list[str]:
        """Return the new addresses that the page asked for, and its policy let it ask."""
        log = self.chrome.get_log("performance")  # type: ignore[no-untyped-call]
        found = [json.loads(entry["message"])["message"] for entry in log]
        blocked = {
            event["params"]["requestId"]
            for event in found
            if event["method"] == "Network.loadingFailed"
            and event["params"].get("blockedReason") == "csp"
        }
        return [
            event["params"]["request"]["url"]
            for event in found
            if event["method"] == "Network.requestWillBeSent"
            and event["params"]["requestId"] not in blocked
        ]

    def check_quiet(self) -> None:
        """Demand an empty console, and that only the server was asked for anything."""
        messages = self.messages()
        assert messages == [], messages
        others = [
            url
            for url in self.asked()
            if urlsplit(url).scheme not in ("about", "data", "blob", "chrome")
            and urlsplit(url).netloc not in self.hosts
        ]
        assert others == [], others
