"""Settings in a file: every flag as a key, flags beat it, and a sentence for what is wrong."""

import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.cli import serve as serve_command
from fulmen.cli.settings import _text_as_toml
from fulmen.engine import EngineConfig
from fulmen.server import ApiKey, ServerConfig
from tests.cli.test_cli import called
from tests.cli.test_serve import CHAT, ask, served
from tests.examples import examples
from tests.test_docs import root_command
from tests.tiny import write_checkpoint

KEY, OTHER = "sk-first-0123", "sk-second-4567"


class Loaded(Exception):
    """Raised in place of loading a model: the settings are complete by then."""


def configs_of(*arguments: str | Path) -> tuple[dict[str, Any], ServerConfig]:
    """Return what a model would be loaded with, and the server's settings."""
    seen: dict[str, Any] = {}

    def load(name: str, dtype: str | None, device: str, engine: Any, ignored: Any) -> None:
        seen["load"] = {"name": name, "dtype": dtype, "device": device, "ignored": ignored}
        seen["load"]["given"] = dict(engine)
        seen["engine"] = EngineConfig(**engine)
        raise Loaded

    def log_to(_: object, config: ServerConfig) -> None:
        seen["server"] = config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve_command, "load_llm", load)
        patch.setattr("fulmen.server.log_to", log_to)
        with pytest.raises(Loaded):
            called("serve", "--port", "0", *arguments)
    return {"engine": seen["engine"], **seen["load"]}, seen["server"]


def written(folder: Path, text: str) -> Path:
    file = folder / "serve.toml"
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)
    return file


def options() -> dict[str, Any]:
    return {
        option.opts[0].removeprefix("--"): option
        for option in root_command().commands["serve"].params
        if option.name not in ("config", "print_config", "same_model", "help")
    }


def test_a_file_and_flags_are_the_same_settings_two_ways(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        f"""
        model = "minimax-m2"
        alias = ["gpt-4o", "claude"]
        max_num_seqs = 4
        kv-cache = "64MiB"
        max-model-len = "40k"
        max-token-gap = "none"
        log-format = "json"
        drain-seconds = 2
        api-key = "{KEY}"
        no-transcripts = true
        keep-thoughts = true
        draft_tokens = 3
        ignore-config-field = ["a"]
        """,
    )
    typed = (
        *("minimax-m2", "--alias", "gpt-4o", "--alias", "claude", "--max-num-seqs", "4"),
        *("--kv-cache", "64MiB", "--max-model-len", "40k", "--max-token-gap", "none"),
        *("--log-format", "json", "--drain-seconds", "2", "--api-key", KEY, "--no-transcripts"),
        *("--keep-thoughts", "--draft-tokens", "3", "--ignore-config-field", "a"),
    )
    assert configs_of("--config", file) == configs_of(*typed)


def test_a_flag_beats_its_key(tmp_path: Path) -> None:
    file = written(
        tmp_path, 'model = "a"\nmax-num-seqs = 4\nmax-queued = 5\ntranscripts = "kept.sqlite3"\n'
    )
    loaded, server = configs_of("b", "--config", file, "--max-num-seqs", "6")
    assert (loaded["name"], loaded["engine"].max_num_seqs, server.max_queued) == ("b", 6, 5)
    assert server.transcripts == Path("kept.sqlite3")
    loaded, server = configs_of("--model", "c", "--config", file, "--no-transcripts")
    assert (loaded["name"], server.transcripts) == ("c", None)


def test_several_models_share_the_default_cache(tmp_path: Path) -> None:
    cache_of = {
        arguments: configs_of(*arguments)[0]["engine"].kv_cache_bytes
        for arguments in (("a",), ("a", "b"), ("a", "b", "--kv-cache", "64MiB"))
    }
    assert list(cache_of.values()) == [2**31, 2**30, 2**26]
    file = written(tmp_path, 'model = ["a", "b"]\nalias = ["c=b"]')
    assert configs_of("--config", file) == configs_of("a", "b", "--alias", "c=b")
    assert configs_of("d", "--config", written(tmp_path, 'model = ["a", "b"]'))[0]["name"] == "d"
    assert configs_of() == configs_of("mini-m1", "mini-m2")  # which come with the package
    for models, cache in ((["a", "b"], 2**30), (["a"], 2**31)):
        printed = called("serve", *models, "--print-config").stdout
        assert tomllib.loads(printed)["model"] == (models if len(models) > 1 else models[0])
        again, _ = configs_of("--config", written(tmp_path, printed))
        assert again["engine"].kv_cache_bytes == cache


def test_a_cache_of_the_default_size_in_a_file_holds_for_each_of_several_models(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, 'kv-cache = "2GiB"')
    for models in (("a", "b"), ()):
        assert configs_of(*models, "--config", file)[0]["engine"].kv_cache_bytes == 2**31
    printed = called("serve", "a", "b", "--config", file, "--print-config").stdout
    assert tomllib.loads(printed)["kv-cache"] == "2GiB"


def test_keys_have_names_limits_and_files(tmp_path: Path) -> None:
    key_file = tmp_path / "bob.key"
    key_file.write_text(f"# his\n{OTHER}\n")
    key_file.chmod(0o600)
    file = written(
        tmp_path,
        f"""
        host = "0.0.0.0"
        [[keys]]
        name = "alice"
        key = "{KEY}"
        max-running = 2
        requests_per_minute = 30
        [[keys]]
        name = "bob"
        key-file = "{key_file}"
        tokens-per-minute = 1000
        """,
    )
    assert configs_of("--config", file, "--port", "0")[1].keys == (
        ApiKey(name="alice", key=KEY, max_running=2, requests_per_minute=30),
        ApiKey(name="bob", key=OTHER, tokens_per_minute=1000),
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("max-num-sequences = 4", "max-num-sequences is no setting, the nearest is max-num-seqs"),
        ("max_body_bytes = 4", "max_body_bytes is no setting, the nearest is max-body"),
        ("zzzzzz = 4", "zzzzzz is no setting, `fulmen serve --print-config` lists all"),
        ("max-num-seqs = 4\nmax_num_seqs = 4", "max-num-seqs and max_num_seqs are the same"),
        ("max_num_seqs = 4\nmax-num-seqs = 4", "max_num_seqs and max-num-seqs are the same"),
        ("[server]\nport = 1", "has a table [server], settings stand at the top"),
        ('port = "8000"', "port is '8000', it must be a whole number"),
        ("port = 8000.5", "port is 8000.5, it must be a whole number"),
        ("port = true", "port is True, it must be a whole number"),
        ("keep-thoughts = 1", "keep-thoughts is 1, it must be true or false"),
        ('temperature = "hot"', "temperature is 'hot', it must be a number"),
        ("temperature = nan", "temperature: 'nan' is no finite number"),
        ("host = 1", "host is 1, it must be a text"),
        ("kv-cache = 4", "kv-cache is 4, it must be a text such as '2GiB'"),
        ('kv-cache = "4"', "kv-cache: 4 is not a size, it must be like 4GiB or 4GB"),
        ("max-model-len = 4.5", "max-model-len is 4.5, it must be a whole number, or a text"),
        ("max-model-len = 99999999999999", "max-model-len: "),
        ("alias = [1]", "alias is [1], it must be a list of texts"),
        (f'api-key = [["{KEY}"]]', "api-key is a value of another type"),
        ('log-format = "xml"', "log-format: "),
        ("drain-seconds = 2024-01-01", "drain-seconds is datetime.date(2024, 1, 1), it must be"),
        ("max-queued = -1", "max-queued is -1, it must be 0 or more"),
        ("top-p = 7", "top-p is 7.0, it must be above 0 and at most 1"),
        ("max-num-seqs = 0", "max-num-seqs is 0, it must be 1 or more"),
        ('host = "0.0.0.0"', "host is 0.0.0.0, which other machines reach"),
        ('volatile-line = "("', "volatile-line has '(' in it, which is no regular expression"),
        ("port = 1\nport = 2", "is no TOML: "),
        ("port", "is no TOML: "),
        ("a = " + "[" * 100_000, "is nested too deeply"),
        ("#" * 300_000, "has more than 262,144 bytes"),
        ("keys = 3", "keys must be tables, each under [[keys]]"),
        ("[keys]\nname = 'a'", "keys must be tables, each under [[keys]]"),
        (f"[[keys]]\nkey = '{KEY}'", "[[keys]] 1 has no name"),
        ("[[keys]]\nname = 'a'", "[[keys]] 1 must have either key or key-file"),
        (f"[[keys]]\nname = 'a'\nkey = '{KEY}'\nkey-file = 'b'", "either key or key-file"),
        (f"[[keys]]\nname = 'a b'\nkey = '{KEY}'", "[[keys]] 1: name is 'a b', it must have 1 to"),
        ("[[keys]]\nname = 'a'\nkey = 'sk-few'", "the key of a has 6 characters"),
        (f"[[keys]]\nname = 'a'\nkey = '{KEY} {KEY}'", "the key of a has a character"),
        (f"[[keys]]\nname = 'a'\nkey = '{KEY}'\nmax-runing = 1", "the nearest is max-running"),
        (f"[[keys]]\nname = 'a'\nkey = '{KEY}'\nwhat = 1", "[[keys]] 1 has what, which a key has"),
        (f"[[keys]]\nname = 'a'\nkey = '{KEY}'\nmax-running = 0", "max-running is 0, it must be 1"),
        (f"[[keys]]\nname = 'a'\nkey = '{KEY}'\nmax-running = 1.5", "max-running is 1.5, it must"),
        (f"[[keys]]\nname = 'a'\nkey = ['{KEY}']", "[[keys]] 1: key is no text"),
        (f"[[keys]]\nname = 'a'\nkey = '{KEY}'\nport = 8", "[[keys]] 1 has port, a setting of"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_file_and_key(
    text: str, sentence: str, tmp_path: Path
) -> None:
    file = written(tmp_path, text)
    run = called("serve", tmp_path / "missing", "--no-transcripts", "--config", file)
    assert run.returncode == 1, run.stderr
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"fulmen: {file}")
    assert sentence in line
    assert KEY not in line


def test_keys_that_are_there_twice_are_refused_unshown(tmp_path: Path) -> None:
    tables = "".join(
        f"[[keys]]\nname = '{name}'\nkey = '{key}'\n" for name, key in (("a", KEY), ("b", KEY))
    )
    run = called("serve", "--config", written(tmp_path, tables))
    assert (run.returncode, run.stdout) == (1, "")
    assert "one API key is given twice" in run.stderr
    assert KEY not in run.stderr
    run = called(
        "serve", "--config", written(tmp_path, tables.replace("'b'", "'a'").replace(KEY, OTHER, 1))
    )
    assert "two API keys have the name a" in run.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    run = called("serve", "--config", tmp_path / "missing.toml")
    assert (run.returncode, run.stderr.splitlines()) == (
        1,
        [f"fulmen: {tmp_path / 'missing.toml'}: no such file or directory"],
    )


# ---- printing


def test_the_printed_file_has_every_setting_and_is_what_holds_without_it(tmp_path: Path) -> None:
    printed = called("serve", "--print-config")
    assert (printed.returncode, printed.stderr) == (0, "")
    keys = {line.lstrip("# ").partition(" = ")[0] for line in printed.stdout.splitlines()}
    assert set(options()) <= keys
    assert max(map(len, printed.stdout.splitlines())) <= 100
    file = written(tmp_path, printed.stdout)
    assert called("serve", "--config", file, "--print-config").stdout == printed.stdout
    assert configs_of("--config", file) == configs_of()
    assert configs_of("a", "--config", file)[0]["given"] == {}  # so it goes with --upstream too


def test_what_is_printed_of_flags_and_file_holds_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    file = written(
        tmp_path / "other", f'max-queued = 3\napi-key = ["{KEY}"]\nmax-token-gap = "none"\n'
    )
    flags: list[str | Path] = [
        *("--config", file, "--model", "m", "--max-model-len", "40k", "--kv-cache", "3000KiB"),
        *("--volatile-line", 'a"\\d', "--drain-seconds", "1e-3", "--alias", "ü\x7f\n"),
    ]
    printed = called("serve", *flags, "--print-config")
    assert KEY not in printed.stdout
    (loaded, server), (again, server_again) = (
        configs_of(*flags, "--no-transcripts"),
        configs_of(
            "--config", written(tmp_path, printed.stdout), "--no-transcripts", "--api-key", KEY
        ),
    )
    assert (loaded, server) == (again, server_again)
    assert (loaded["engine"].max_token_gap_seconds, server.aliases) == (None, ("ü\x7f\n",))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@settings(deadline=None, max_examples=examples(40))
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "alias": st.lists(TEXTS, min_size=1, max_size=3),
            "max-queued": st.integers(0, 2**40),
            "drain-seconds": st.floats(1e-6, 1e8),
            "log-content": st.booleans(),
            "max-tokens": st.integers(1, 10**6),
            "model": TEXTS.filter(lambda text: text.strip() != ""),
            "max-body": st.sampled_from(["1B", "1KiB", "1500KB", "3GiB"]),
        },
    )
)
def test_any_settings_are_printed_as_they_were_read(values: dict[str, Any]) -> None:
    def shown(value: Any) -> str:
        if isinstance(value, list):
            return "[" + ", ".join(map(shown, value)) + "]"
        if isinstance(value, str):
            return _text_as_toml(value)
        return str(value).lower()

    text = "".join(f"{key} = {shown(value)}\n" for key, value in values.items())
    assert tomllib.loads(text) == values
    with TemporaryDirectory() as folder:
        run = called("serve", "--config", written(Path(folder), text), "--print-config")
    assert run.returncode == 0, run.stderr
    printed = tomllib.loads(run.stdout)
    sizes = {"1500KB": "1500000B"}
    expected = {
        key: sizes.get(value, value) if isinstance(value, str) else value
        for key, value in values.items()
    }
    assert {key: printed[key] for key in values} == expected


def test_a_server_holds_to_its_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny-m2", "m2")
    text = f"""
        model = "{folder}"
        max-tokens = 3
        [[keys]]
        name = "alice"
        key = "{KEY}"
        requests-per-minute = 1
    """
    few = {name: value for name, value in CHAT.items() if name != "max_tokens"}
    with served("--config", written(tmp_path, text), home=tmp_path) as (_, url, printed):
        status, answer = ask(f"{url}/v1/chat/completions", few, KEY)
        assert (status, answer["usage"]["completion_tokens"]) == (200, 3)
        status, answer = ask(f"{url}/v1/chat/completions", few, KEY)
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        status, answer = ask(f"{url}/v1/usage", key=KEY)
        assert (status, answer["new_tokens"], answer["refused_requests"]) == (200, 3, 1)
        assert ask(f"{url}/v1/usage")[0] == 401
    assert "key=alice" in printed[1]
    assert KEY not in "".join(printed)


LINES = [
    *("port = 9000", "max_queued = 3", 'alias = ["a"]', "keep-thoughts = true", "[[keys]]"),
    *('name = "a"', f'key = "{KEY}"', "max-running = 1", 'kv-cache = "1GiB"', "[server]", "= 3"),
    *("temperature = 1e400", "keys.a = 1", 'model = "\\u0000"', "top-k = -0", "seed = 0x10"),
]


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(st.one_of(st.sampled_from(LINES), st.text(max_size=12)), max_size=8))
def test_any_file_is_read_or_refused_in_a_sentence(lines: list[str]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "serve.toml"
        file.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
        file.chmod(0o600)
        run = called("serve", "--config", file, "--print-config")
        assert run.returncode == (1 if run.stderr else 0)
        assert len(run.stderr.splitlines()) <= 1
        assert KEY not in run.stderr + run.stdout
        if run.returncode == 0:
            tomllib.loads(run.stdout)


@pytest.mark.parametrize(("mode", "is_warned"), [(0o600, False), (0o644, True)])
def test_a_file_of_keys_that_others_may_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, is_warned: bool
) -> None:
    file = written(tmp_path, f"[[keys]]\nname = 'a'\nkey = '{KEY}'\n")
    file.chmod(mode)
    called("serve", "--config", file, "--print-config")
    assert ("chmod 600" in caplog.text) == is_warned
    assert KEY not in caplog.text
