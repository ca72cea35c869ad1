"""Tokenizers: any text there and back, digits apart, words and control tokens whole."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fulmen.chat import Message, Tokenizer, get_format
from fulmen.envs import demonstrated, load_environment, tools_of
from fulmen.envs.basics import KINDS
from fulmen.train import make_tokenizer
from fulmen.train.lm.examples import Coder
from fulmen.train.lm.tokenizer import _pieces
from tests.examples import examples


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    text = folder / "text.txt"
    text.write_text("the cat sat on the mat, 1234 times in the end\n" * 50)
    make_tokenizer(folder / "c", kind="characters", words=["reverse ", "add"])
    make_tokenizer(
        folder / "b", kind="bpe", files=[text], vocab_size=300, words=["mat"], format="minimax_m2"
    )
    text.write_text('the cat sat on a mat\nthe "cat" and "den" sat\n' * 5 + "dog den\n" * 4)
    make_tokenizer(folder / "w", kind="words", files=[text], vocab_size=400, words=["reverse "])
    return {name: Tokenizer.from_folder(folder / name) for name in ("c", "b", "w")}


@settings(max_examples=examples(200), deadline=None)
@given(text=st.text(st.characters(codec="utf-8")), name=st.sampled_from("cbw"))
@example(text='"the cat"the 12 Straße "', name="w")
def test_a_text_comes_back_whole(made: dict[str, Tokenizer], text: str, name: str) -> None:
    ids = made[name].encode_plain(text)
    assert made[name].decode(ids) == text
    assert b"".join(map(made[name].token_bytes, ids)) == text.encode()


def test_characters_stay_apart_but_for_words(made: dict[str, Tokenizer]) -> None:
    tokens = [made["c"].token(i) for i in made["c"].encode_plain("reverse re add12")]
    assert tokens == ["reverseĠ", "r", "e", "Ġ", "add", "1", "2"]


def test_merges_are_learnt_and_never_join_digits(made: dict[str, Tokenizer]) -> None:
    tokens = [made["b"].token(i) for i in made["b"].encode_plain("the cat 1234 mat")]
    assert tokens == ["the", "Ġcat", "Ġ", "1", "2", "3", "4", "Ġ", "mat"]
    assert 280 < made["b"].vocab_size <= 300


def test_frequent_words_are_whole_and_all_else_is_spelled(made: dict[str, Tokenizer]) -> None:
    def tokens(text: str) -> list[str | None]:
        return [made["w"].token(i) for i in made["w"].encode_plain(text)]

    assert tokens("the cat sat") == ["the", "Ġcat", "Ġsat"]
    assert tokens("cat the") == ["c", "a", "t", "Ġ", "t", "h", "e"]  # seen only the other way
    assert tokens("the dog a 12") == ["the", *"Ġdog", "Ġ", "a", "Ġ", "1", "2"]
    assert tokens('the "cat" sat') == ["the", "Ġ", '"', *"cat", '"', "Ġsat"]
    assert tokens("reverse the") == ["reverseĠ", "the"]
    assert tokens("cats") == [*"cats"]


def test_the_most_frequent_words_come_first(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("red\n" * 9 + "blue\n" * 8 + "green\n" * 7 + "x\n" * 20 + "12\n" * 20)
    fixed = make_tokenizer(tmp_path / "c", kind="characters")
    sizes = [
        make_tokenizer(tmp_path / str(more), kind="words", files=[text], vocab_size=fixed + more)
        for more in (2, 50)
    ]
    assert sizes == [fixed + 2, fixed + 3]
    tokenizer = Tokenizer.from_folder(tmp_path / "2")
    ids = tokenizer.encode_plain("red\nblue\ngreen")
    assert [tokenizer.token(i) for i in ids] == ["red", "Ċ", "blue", "Ċ", *"green"]


def test_words_are_learnt_from_demonstrations_and_basics_are_short(tmp_path: Path) -> None:
    names = [f"basics:{kind}:training" for kind in KINDS]
    size = make_tokenizer(tmp_path, kind="words", environments=names, vocab_size=1024)
    assert 600 < size <= 1024
    coder = Coder(Tokenizer.from_folder(tmp_path), get_format("minimax_m1"))
    lengths = []
    for name in names:
        environment = load_environment(name, seed=11)
        for index in range(100):
            (one,) = coder.conversation(demonstrated(environment.task(index)))
            lengths.append(len(one.ids))
    assert max(lengths) <= 190
    assert 50 <= sorted(lengths)[len(lengths) // 2] <= 100
    assert len(coder.tokenizer.encode_plain(" sentence")) == 9  # a control token is no text


@pytest.mark.parametrize("format", ["minimax_m1", "minimax_m2"])
def test_turns_have_one_token_for_each_tag_and_head(tmp_path: Path, format: str) -> None:
    size = make_tokenizer(tmp_path, kind="characters", format=format)
    tokenizer, chat = Tokenizer.from_folder(tmp_path), get_format(format)
    assert tokenizer.vocab_size == size < 280
    talk = [Message("user", "a"), Message("assistant", "b", thinking="c")]
    ids = chat.encode(talk, tokenizer=tokenizer)
    assert len(ids) < 60
    assert tokenizer.decode(ids) == chat.render(talk)
    assert tokenizer.eos_token_ids == (tokenizer.token_id(chat.end_of_turn),)
    assert tokenizer.bos_token_id is not None


def test_what_cannot_be_is_one_sentence_and_writes_nothing(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"\xff\xfe")
    for options, sentence in (
        (
            {"kind": "bpe"},
            r"^no text is given \(--text, --environment\), the kind bpe learns its merges from",
        ),
        (
            {"kind": "words"},
            r"^no text is given \(--text, --environment\), the kind words learns its words from",
        ),
        ({"kind": "words", "files": [text], "vocab_size": 9}, "^vocab_size is 9, it must be above"),
        ({"kind": "characters", "files": [text]}, "^a text is given, the kind characters learns"),
        (
            {"kind": "bpe", "files": [text], "vocab_size": 256},
            "^vocab_size is 256, it must be above",
        ),
        ({"kind": "bpe", "files": [text]}, r"text\.txt is not UTF-8"),
        ({"kind": "bpe", "files": [tmp_path / "x"]}, "x is missing, a text to learn from is"),
        ({"kind": "characters", "words": ["a"]}, "^a word is empty or one character, "),
        ({"kind": "characters", "format": "m9"}, "^format m9 is not known, "),
    ):
        with pytest.raises(ValueError, match=sentence):
            make_tokenizer(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_folder_with_a_checkpoint_or_a_tokenizer_stays_as_it_is(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"has a {name}, whose model would be lost with another"):
        make_tokenizer(tmp_path, kind="characters")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "{}"


def test_a_tokenizer_whose_last_file_does_not_fit_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()

    def write(file: Path, text: str) -> None:
        if file.name == "tokenizer.json":
            raise OSError(28, "no space left on device", str(file))
        file.write_text(text)

    monkeypatch.setattr("fulmen.train.lm.tokenizer.write_text", write)
    with pytest.raises(OSError, match="no space left"):
        make_tokenizer(tmp_path / "out", kind="characters")
    assert not list((tmp_path / "out").iterdir())


def test_a_text_without_ends_of_lines_is_read_in_pieces(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("ä" * (3 * 2**20), encoding="utf-8")
    pieces = list(_pieces([text]))
    assert max(map(len, pieces)) <= 2 * 2**20
    assert "".join(pieces) == text.read_text("utf-8")


def test_merges_are_learnt_from_demonstrations(tmp_path: Path) -> None:
    name = "tools:1:library"
    size = make_tokenizer(
        tmp_path, kind="bpe", environments=[name], vocab_size=500, format="minimax_m2"
    )
    assert size <= 500
    tokenizer = Tokenizer.from_folder(tmp_path)
    task = load_environment(name, seed=1).task(0)
    text = get_format("minimax_m2").render(task.messages, tools_of(task))
    ids = tokenizer.encode(text)
    assert len(ids) < len(text) / 2
    with pytest.raises(ValueError, match="nonsense is no environment"):
        make_tokenizer(tmp_path / "other", kind="bpe", environments=["nonsense"])
    assert not (tmp_path / "other").exists()
