"""The page loads, a message is sent, its answer is shown, and the console stays empty."""

from pathlib import Path

from tests.server.page.serving import served_page
from tests.server.page.tab import Tab


def test_a_message_is_sent_and_answered(tab: Tab, tmp_path: Path) -> None:
    with served_page(tmp_path / "sessions") as url:
        tab.open(url)
        assert tab.ask("hello") == "Answer 1 to hello."
        assert tab.texts(".answer strong") == ["hello"]
        assert tab.messages() == []
