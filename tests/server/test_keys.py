"""API keys: who may ask, and what a file of keys must be."""

import hashlib
import hmac
import logging
import os
from pathlib import Path

import pytest

from fulmen.server.errors import Refusal
from fulmen.server.keys import Keys, read_key_file

ONE, TWO = "sk-first-0123", "sk-second-4567"


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"authorization": f"Bearer {ONE}"}, ONE),
        ({"authorization": f"bearer {TWO}"}, TWO),
        ({"authorization": f"BEARER   {TWO} "}, TWO),
        ({"x-api-key": ONE}, ONE),
        ({"x-api-key": TWO, "authorization": "Bearer something-else"}, TWO),
        ({"x-api-key": "something-else", "authorization": f"Bearer {ONE}"}, ONE),
        ({"x-api-key": TWO, "authorization": "Basic Zm9vOmJhcg=="}, TWO),
    ],
)
def test_a_key_is_known_in_either_header(headers: dict[str, str], key: str) -> None:
    expected = hashlib.sha256(key.encode()).hexdigest()
    scope = Keys([ONE, TWO]).scope_of(headers)
    assert len(scope) >= 16
    assert expected.startswith(scope)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": ONE},
        {"authorization": f"Basic {ONE}"},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {ONE}x"},
        {"authorization": f"Bearer {ONE[:-1]}"},
        {"authorization": f"Bearer {ONE.upper()}"},
        {"x-api-key": ""},
        {"x-api-key": f"{ONE},{TWO}"},
        {"x-api-key": "\udcff\xff"},
    ],
)
def test_any_other_is_refused_and_never_repeated(headers: dict[str, str]) -> None:
    with pytest.raises(Refusal) as caught:
        Keys([ONE, TWO]).scope_of(headers)
    assert caught.value.status == 401
    assert "sk-" not in caught.value.message.lower()


def test_scopes_outlive_a_restart_and_differ() -> None:
    scopes = [Keys([*keys]).scope_of({"x-api-key": ONE}) for keys in ((ONE, TWO), (TWO, ONE))]
    assert scopes[0] == scopes[1] != Keys([TWO]).scope_of({"x-api-key": TWO})


def test_without_keys_all_may_ask_in_one_scope() -> None:
    assert Keys(()).scope_of({}) == Keys(()).scope_of({"x-api-key": "anything"}) == ""


@pytest.mark.parametrize("sent", [ONE, "sk-third-8901", TWO, "", "sk-first-012"])
def test_each_comparison_is_made_whatever_matches(
    monkeypatch: pytest.MonkeyPatch, sent: str
) -> None:
    compared: list[int] = []

    def compare(one: bytes, other: bytes) -> bool:
        assert len(one) == len(other) == 32  # digests: the length of a key shows in nothing
        compared.append(1)
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    try:
        Keys([ONE, TWO, "sk-fourth"]).scope_of({"authorization": f"Bearer {sent}"})
    except Refusal:
        pass
    assert len(compared) == (3 if sent else 0)


@pytest.mark.parametrize("key", ["with blank", "tab\tinside", "line\nbreak", "schlüssel", ""])
def test_a_key_that_no_header_can_carry_is_refused_unshown(key: str) -> None:
    with pytest.raises(ValueError, match="API key 2 has a character") as caught:
        Keys([ONE, key])
    assert not key or key not in str(caught.value)


def test_a_file_has_a_key_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(f"\ufeff# of the team\n\n  {ONE}  \r\n#{TWO}\n{TWO}\n".encode())
    file.chmod(0o600)
    assert read_key_file(file) == (ONE, TWO)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "no API key"),
        (b"\n# none\n \n", "no API key"),
        (b"sk-first-0123\nshort\n", "line 2: the API key has 5 characters"),
        (b"sk-first 0123\n", "line 1: the API key has a character"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"sk-first-0123\n" * 100_000, "more than 1,048,576 bytes"),
    ],
)
def test_a_file_that_is_no_file_of_keys_is_refused_unshown(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_key_file(file)
    assert "sk-" not in str(caught.value)
    assert "short" not in str(caught.value)


@pytest.mark.parametrize(("mode", "is_warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_file_that_others_may_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, is_warned: bool
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{ONE}\n")
    os.chmod(file, mode)
    with caplog.at_level(logging.WARNING):
        read_key_file(file)
    assert ("chmod 600" in caplog.text) == is_warned
    assert ONE not in caplog.text
