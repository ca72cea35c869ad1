"""Several models: a person chooses one, and a conversation keeps it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fulmen.chat import ChatRequest
from fulmen.llm import LLM, LocalModel
from tests.server.helpers import ask, last_message, served
from tests.server.page.serving import MAX_MODEL_LEN, Speaking, served_page
from tests.server.page.tab import Tab
from tests.tiny import write_checkpoint


@contextmanager
def served_models(sessions: Path) -> Iterator[str]:
    """Serve two models, each of which says its name."""

    def load(folder: str, name: str) -> LocalModel:
        checkpoint = Path(folder) / name
        write_checkpoint(checkpoint, name, max_position_embeddings=MAX_MODEL_LEN)
        return LocalModel(LLM.load(str(checkpoint)))

    def speaking(name: str, model: LocalModel) -> Speaking:
        thought = "Hm.</think>\n\n" if name == "m2" else ""

        def answer(request: ChatRequest) -> str:
            return f"{thought}{name} heard {last_message(request).content}"

        return Speaking(model, answer)

    with TemporaryDirectory() as folder:
        models = {name: load(folder, name) for name in ("m1", "m2")}
        try:
            says = {name: speaking(name, model) for name, model in models.items()}
            with served(says, sessions=sessions, aliases=("gpt-4o",)) as url:
                yield url
        finally:
            for model in models.values():
                asyncio.run(model.close())


def choose(tab: Tab, name: str) -> None:
    tab.js(
        "const s = document.getElementById('models'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('change'))",
        name,
    )


def chosen(tab: Tab) -> str:
    return str(tab.js("return document.getElementById('models').value"))


def test_a_conversation_keeps_the_model_that_it_was_begun_with(tab: Tab, tmp_path: Path) -> None:
    with served_models(tmp_path / "sessions") as url:
        tab.open(url)
        assert tab.texts("#models option") == ["m1", "m2"]  # an alias is no model of its own
        assert chosen(tab) == "m1"
        assert tab.ask("hello") == "m1 heard hello"
        choose(tab, "m2")  # where something was said, a new conversation
        assert tab.answers == []
        assert tab.ask("you") == "m2 heard you"
        tab.click("New conversation")
        assert chosen(tab) == "m2"
        choose(tab, "m1")  # where nothing was said, the same one
        assert tab.ask("again") == "m1 heard again"
        served_as = {
            each["metadata"]["title"]: each["served_as"]
            for each in ask(url, "/v1/sessions").json()["data"]
        }
        assert served_as == {"hello": "m1", "you": "m2", "again": "m1"}
        tab.reload()
        tab.click("you", "#conversations")
        tab.wait(lambda: tab.answers == ["m2 heard you"])
        assert chosen(tab) == "m2"
        assert tab.ask("more") == "m2 heard more"
        tab.click("Answer again", "article:last-of-type")
        tab.wait(lambda: tab.is_shown("#send"))
        kinds = [each["served_as"] for each in ask(url, "/v1/sessions").json()["data"]]
        assert sorted(kinds) == ["m1", "m1", "m2", "m2"]  # a branch has the model too


def test_one_model_leaves_nothing_to_choose(tab: Tab, tmp_path: Path) -> None:
    with served_page(tmp_path / "sessions") as url:
        tab.open(url)
        assert not tab.is_shown("#models")
