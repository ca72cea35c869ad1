"""The command as a user runs it: data on stdout, the rest on stderr, one sentence for a mistake."""

import contextlib
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fulmen.cli.app import dispatch
from tests.kernels.helpers import needs_native
from tests.tiny import write_checkpoint
from tests.warm import python

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("m2"), "m2")


def fulmen(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the command; arguments as typed."""
    return subprocess.run(
        python("-m", "fulmen.cli", *arguments),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


def called(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which spares the time of loading torch."""
    out, error = io.StringIO(), io.StringIO()
    typed = ["fulmen", *map(str, arguments)]
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        patch.setattr(sys, "argv", typed)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        try:
            dispatch()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(typed, code, out.getvalue(), error.getvalue())


def assert_refused(run: subprocess.CompletedProcess[str], sentence: str) -> None:
    """Assert that a command was refused in a sentence: with code 2 if that is about a flag."""
    assert sentence in run.stderr
    if sentence.startswith(("--", "Invalid value for '--")):
        assert run.returncode == 2
        assert f"\nError: {sentence}" in run.stderr
    else:
        assert run.returncode == 1
        assert len(run.stderr.splitlines()) == 1


def test_one_shot_chat_prints_the_answer_alone(folder: Path) -> None:
    flags = ("--max-tokens", "12", "--seed", "1", "--thinking-budget", "3")
    run = fulmen("chat", "Hello", "--model", folder, *flags)
    assert run.returncode == 0, run.stderr
    piped = fulmen("chat", "--model", folder, *flags, stdin="Hello")
    assert piped.stdout == run.stdout
    assert "token limit" in run.stderr
    assert "</think>" not in run.stdout
    assert run.stdout.endswith("\n")


def test_what_is_piped_in_comes_before_the_question(folder: Path, tmp_path: Path) -> None:
    at = ("--store", tmp_path)
    flags = ("--model", folder, "--session", "notes", *at, "--max-tokens", "2")
    run = fulmen("chat", "Sum this up.", *flags, stdin="One.\nTwo.\n")
    assert run.returncode == 0, run.stderr
    assert "One.\nTwo.\n\nSum this up." in fulmen("sessions", "show", "notes", *at).stdout


def test_a_silent_pipe_is_not_waited_for(folder: Path) -> None:
    reader, writer = os.pipe()
    try:
        command = python("-m", "fulmen.cli", "chat", "Hi", "--model", folder)
        run = subprocess.run(
            [*command, "--max-tokens", "2"], stdin=reader, capture_output=True, timeout=120
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert run.returncode == 0, run.stderr


def test_an_answer_that_is_cut_off_within_its_schema_is_a_failure(folder: Path) -> None:
    flags = ("--model", folder, "--thinking-budget", "0", "--max-tokens", "9")
    run = fulmen("chat", "Hi", *flags, "--json-schema", '{"type": "string", "minLength": 90}')
    assert run.returncode == 1
    assert run.stdout
    assert "the answer is cut off" in run.stderr


def test_generate_continues_a_text_and_reports_ids_as_json(folder: Path) -> None:
    flags = ("--model", folder, "--max-tokens", "5", "--temperature", "0")
    run = fulmen("generate", "Once", *flags, "--json", "--logprobs", "2")
    result = json.loads(run.stdout)
    assert len(result["tokens"]) == 5
    assert result["finish_reason"] == "length"
    first = result["tokens"][0]
    assert first["top_logprobs"][str(first["id"])] == pytest.approx(first["logprob"])
    assert fulmen("generate", "Once", *flags).stdout == result["text"] + "\n"
    assert fulmen("generate", *flags, stdin="Once").stdout == result["text"] + "\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("chat", "hi", "--model", "nowhere"), "nowhere is no path on this machine"),
        (("chat", "  "), "the message is empty"),
        (("generate", ""), "the prompt is empty"),
        (("chat", "hi", "--model", GOLDEN / "m2-tiny"), "has no tokenizer.json"),
        (("plan", "/no/such/config.json"), "/no/such/config.json does not exist"),
        (("plan", "figure1", "--out", GOLDEN), "golden: is a directory"),
        (("models", "show", "m3"), "MiniMax-M3 is another architecture"),
        (("models", "check", "nowhere"), "nowhere does not exist"),
        (("models", "check", GOLDEN), "config.json is missing"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_non_zero_exit(
    arguments: tuple[str, ...], sentence: str
) -> None:
    run = called(*arguments)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith("fulmen: ")
    assert sentence in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_an_answer_that_is_all_thought_leaves_stdout_empty(folder: Path) -> None:
    run = fulmen("chat", "Hello", "--model", folder, "--max-tokens", "6", "--seed", "2")
    assert run.stdout == ""
    assert run.stderr.endswith("\n(stopped at the token limit)\n")


def test_impossible_sampling_is_one_sentence(folder: Path) -> None:
    run = called("chat", "hi", "--model", folder, "--temperature", "-1")
    assert (run.returncode, run.stdout) == (2, "")
    assert "Error: --temperature is -1.0, it must be 0 or more\n" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--top-k", "0"), "Error: --top-k is 0, it must be 1 or more, or none"),
        (("--dtype", "int3"), "Error: --dtype is 'int3'"),
        (("--device", "warp"), "Error: --device is 'warp', it must be cpu, cuda, or "),
        (("--kv-cache", "64B"), "Error: --kv-cache is 64 bytes, one page of 64 tokens needs "),
        (("--kv-cache", "999TiB"), "Error: --kv-cache is 999.0 TiB, this machine has "),
        (("--session-bytes", "9"), "Invalid value for '--session-bytes': 9 is not a size"),
        (("--json-schema", "{"), "Error: --json-schema is not JSON: "),
        (("--json-schema", "3"), "Error: --json-schema is 3, it must be a JSON Schema"),
        (("--regex", "a", "--choice", "b"), "Error: --regex and --choice are given"),
        (("--max-model-len", "1"), "Error: --max-model-len is 1, it must be 2 or more, or none"),
        (("--continue",), "No such option: --continue, --session NAME keeps a conversation"),
        (("--json",), "No such option: --json, --json-schema makes the answer JSON"),
        (("--temprature", "1"), "No such option: --temprature, did you mean --temperature?"),
        (("--strange",), "No such option: --strange\n"),
        (("there",), "MESSAGE is one argument, put quotes around its words"),
    ],
)
def test_a_mistake_names_the_flag_as_it_was_typed(
    arguments: tuple[str, ...], sentence: str, folder: Path
) -> None:
    run = called("chat", "hi", "--model", folder, *arguments)
    assert run.returncode == 2
    assert sentence in run.stderr


def test_a_letter_asks_for_help() -> None:
    for path in ((), ("chat",), ("models", "list")):
        assert called(*path, "-h").stdout == called(*path, "--help").stdout


def test_a_model_that_cannot_fit_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for command in ("chat", "generate"):
        run = called(command, "hi", "--model", "minimax-m1-80k")
        assert (run.returncode, run.stdout) == (1, "")
        assert re.match(
            r"fulmen: MiniMax-M1-80k needs \d+ GiB of memory, this machine has \d+ GiB", run.stderr
        )
        assert "`fulmen plan minimax-m1-80k`" in run.stderr
        assert "`fulmen models pull minimax-m1-80k`" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_input_that_is_not_utf8_is_one_sentence(folder: Path) -> None:
    command = python("-m", "fulmen.cli", "chat", "--model", folder)
    run = subprocess.run(command, input=b"caf\xe9", capture_output=True)
    assert run.returncode == 1
    assert run.stderr.startswith(b"fulmen: what was piped in is not UTF-8")


def test_check_lists_problems_and_fails(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "m1")
    run = fulmen("models", "check", tmp_path)
    assert run.returncode == 0
    assert "all " in run.stdout
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    run = fulmen("models", "check", tmp_path)
    assert run.returncode == 1
    assert "is truncated" in run.stdout


def test_models_list_and_show_work_offline() -> None:
    listed = called("models", "list").stdout
    for name in ("minimax-m1-40k", "minimax-m1-80k", "minimax-m2", "minimax-m2.1", "minimax-m2.5"):
        assert name in listed
    english = called("models", "show", "minimax-m1-80k").stdout
    assert "456,089,655,296" in english
    assert "Yan Junjie" in english
    assert "456.089.655.296" in called("models", "show", "minimax-m1-80k", "--lang", "de").stdout


class Terminal:
    """The command in a pseudo-terminal, as a person sees it."""

    def __init__(self, *arguments: str | Path) -> None:
        self.leader, follower = pty.openpty()
        self.process = subprocess.Popen(
            python("-m", "fulmen.cli", *arguments),
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=os.environ | {"TERM": "dumb", "COLUMNS": "200"},
            start_new_session=True,
        )
        os.close(follower)
        os.set_blocking(self.leader, False)
        self.text = ""

    def wait_for(self, pattern: str, timeout_seconds: float = 60) -> str:
        """Reads until the pattern appears after what was read before; returns what came."""
        deadline = time.monotonic() + timeout_seconds
        while not (match := re.search(pattern, self.text, re.S)):
            assert time.monotonic() < deadline, f"waited for {pattern!r} in {self.text!r}"
            try:
                self.text += os.read(self.leader, 65536).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:  # the command has gone
                assert re.search(pattern, self.text, re.S), self.text
        seen, self.text = self.text[: match.end()], self.text[match.end() :]
        return seen

    def type(self, line: str) -> None:
        os.write(self.leader, f"{line}\n".encode())

    def close(self) -> int:
        code = self.process.wait(30)
        os.close(self.leader)
        return code


def test_a_conversation_with_its_commands(folder: Path, tmp_path: Path) -> None:
    terminal = Terminal("chat", "--model", folder, "--max-tokens", "6", "--seed", "2")
    terminal.wait_for("Ctrl-D leaves.*> ")
    terminal.type("Hello there")
    terminal.wait_for("token limit.*> ")
    for command, answer in (
        ("/stats", r"\d+ prompt tokens read in .* 6 new tokens"),
        ("/set temperature 0.25", ""),
        ("/set", r"temperature = 0\.25"),
        ("/set colour red", "colour is no sampling parameter"),
        ("/set top_p 7", r"top_p is 7"),
        ("/set top_k 3.5", r"top_k is 3\.5, it must be a whole number or none"),
        ("/set stop_token_ids 5", ""),
        ("/set stop END", ""),
        ("/set", r"stop = \('END',\)"),
        ("/set stop none", ""),
        ('/set json_schema {"type": "null"}', ""),
        ("/set", r"json_schema = \{\"type\": \"null\"\}"),
        ("/set json_schema none", ""),
        ("/retry", "token limit"),
        (f"/save {tmp_path}/talk.json", "2 messages written"),
        ("/undo", ""),
        ("/undo", "there is no question yet"),
        (f"/load {tmp_path}/talk.json", "2 messages read"),
        (f"/load {tmp_path}/none.json", r"no\s+such\s+file"),
        ("/system Be brief.", r"Be brief\."),
        ("/system none", "no system prompt"),
        ("/save", "needs the name of a file"),
        ("/save ~nosuchuser/x", "is no path"),
        ("/nonsense", "/nonsense is no command"),
        ("/help", "forget the conversation"),
    ):
        terminal.type(command)
        terminal.wait_for(f"{answer}.*> $")
    terminal.type("/exit")
    assert terminal.close() == 0
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [message["role"] for message in saved] == ["user", "assistant"]
    assert saved[0]["content"] == "Hello there"


def test_ctrl_c_stops_the_answer_and_gives_the_prompt_back(folder: Path) -> None:
    flags = ("--ignore-eos", "--max-model-len", "1024", "--thinking-budget", "0")
    terminal = Terminal("chat", "--model", folder, *flags)
    terminal.wait_for("Ctrl-D leaves.*> ")
    terminal.type("Hello")
    terminal.wait_for("Hello\r\n.*[^ ]")
    os.killpg(terminal.process.pid, signal.SIGINT)
    terminal.wait_for(r"\((stopped|stopped at the token limit)\).*> ")
    terminal.type("/exit")
    assert terminal.close() == 0


def test_an_answer_may_be_chosen_or_follow_a_schema_in_a_file(folder: Path, tmp_path: Path) -> None:
    flags = ("--model", folder, "--thinking-budget", "3", "--max-tokens", "300")
    run = fulmen("chat", "Well?", "--choice", "yes", "--choice", "no", *flags)
    assert run.stdout in ("yes\n", "no\n")
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"type": "boolean"}, "maxItems": 3}')
    run = fulmen("chat", "Well?", "--json-schema", schema, *flags)
    assert isinstance(json.loads(run.stdout), list)


def test_flags_without_an_effect_are_refused(folder: Path) -> None:
    for arguments, code, sentence in (
        (("generate", "hi", "--logprobs", "2"), 2, "Error: --logprobs needs --json\n"),
        (("chat", "hi", "--regex", "[a"), 2, "Error: --regex cannot be followed"),
        (("chat", "hi", "--json-schema", "none.json"), 1, "fulmen: none.json: no such file"),
    ):
        run = called(*arguments, "--model", folder)
        assert (run.returncode, run.stdout) == (code, "")
        assert sentence in run.stderr
        assert len(run.stderr.splitlines()) == 1 or code == 2


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("chat", "--logprobs"),
        ("chat", "--strict-tools"),
        ("generate", "--thinking-budget"),
        ("generate", "--thinking-soft-end"),
        ("generate", "--strict-tools"),
    ],
)
def test_a_command_offers_no_flag_that_it_would_refuse(command: str, flag: str) -> None:
    assert flag not in called(command, "--help").stdout
    run = called(command, "hi", flag, "2")
    assert (run.returncode, run.stdout) == (2, "")
    assert f"No such option: {flag}" in run.stderr


def test_a_size_that_is_none_is_a_mistake_of_usage(folder: Path) -> None:
    run = called("generate", "hi", "--kv-cache", "lots", "--model", folder)
    assert (run.returncode, run.stdout) == (2, "")
    assert "Invalid value for '--kv-cache': lots is not a size" in run.stderr


def test_quantize_writes_a_folder_that_chats_and_says_what_it_cost(
    folder: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The tide comes in twice a day, and twice a day it goes out again. " * 3)
    run = fulmen("quantize", folder, tmp_path / "out", "--bits", "4", "--report", text)
    assert run.returncode == 0, run.stderr
    quality = json.loads((tmp_path / "out/quality.json").read_text())
    assert quality["drift"]["num_tokens"] == len(text.read_text())
    assert 0.5 < quality["drift"]["top1_agreement"] <= 1
    assert len(quality["worst_tensors"]) == 10
    assert f"{quality['drift']['top1_agreement']:.4f}" in run.stdout
    shown = fulmen("models", "show", tmp_path / "out")
    stored = " ".join(shown.stdout.split())
    assert "4 bits on the levels of a codebook in groups of 32, the head 8 bits" in stored
    assert "in groups of 32, packed for the CPU; inputs are rounded to 8 bits" in stored
    assert "have the right shape" in fulmen("models", "check", tmp_path / "out").stdout
    answer = fulmen("chat", "Hello", "--model", tmp_path / "out", "--max-tokens", "4")
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--group-size", "48"), "--group-size is 48, it must be 32 or 64 or 128"),
        (("--bits", "fp8", "--group-size", "32"), "--group-size is 32, it must be 128"),
        (("--input-bits", "4"), "--input-bits is 4, it must be 8 or 16"),
        (("--head-bits", "4"), "--head-bits is 4, it must be 8 or 16"),
        (("--head-bits", "few"), "Invalid value for '--head-bits': 'few' is no whole number"),
        (("--levels", "codebook"), "--levels is codebook, it must be even: only weights"),
        (
            ("--bits", "4", "--levels", "odd"),
            "Invalid value for '--levels'",
        ),
        (("--dtype", "int8"), "--dtype is 'int8', it must be one of bfloat16, float32"),
        (("--dtype", "float16"), "--dtype is 'float16', it must be one of bfloat16, float32"),
        (("--bits", "fp8", "--input-bits", "8"), "--input-bits is 8, it must be 16: fp8 weights"),
        (("--max-shard", "2"), "Invalid value for '--max-shard': 2 is not a size, it must be"),
        (("--report-tokens", "-1"), "--report-tokens is -1, it must be 0 or at least 2"),
        (("--report-tokens", "1"), "--report-tokens is 1, it must be 0 or at least 2"),
        (("--report", "absent.txt"), "absent.txt: no such file or directory"),
        (("--report", "empty.txt"), "empty.txt has 0 tokens, a comparison needs at least 2"),
        (("--report", "short.txt"), "short.txt has 1 tokens, a comparison needs at least 2"),
        (("--report", "latin1.txt"), "latin1.txt is not UTF-8: "),
        (("--calibrate", "latin1.txt"), "latin1.txt is not UTF-8: "),
        (("--calibrate", "short.txt"), "a calibration text of 1 tokens is too short, at least 256"),
        (
            ("--calibrate", "short.txt", "--bits", "fp8"),
            "--calibrate is given: a calibration text is for bits 8 or 4, fp8",
        ),
        (
            ("--calibrate", "short.txt", "--calibrate-tokens", "0"),
            "--calibrate-tokens is too small",
        ),
        (
            ("--calibrate", "short.txt", "--calibrate-tokens", "9"),
            "--calibrate-tokens is too small",
        ),
        (("--calibrate", "short.txt", "--max-shard", "1GB"), "--max-shard has no effect with"),
    ],
)
def test_a_flag_of_quantize_that_cannot_be_right_is_one_sentence(
    flags: tuple[str, ...], sentence: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("a")
    (tmp_path / "latin1.txt").write_bytes("Zürich".encode("latin-1"))
    paths = [tmp_path / flag if flag.endswith(".txt") else flag for flag in flags]
    run = called("quantize", folder, tmp_path / "out", *paths)
    assert_refused(run, sentence)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_quantize_cannot_write_is_found_before_anything_is_fetched(
    tmp_path: Path,
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    run = called("quantize", "no-such-model", tmp_path / "taken")
    assert run.returncode == 1
    assert "taken exists and fulmen quantize did not begin it" in run.stderr
    run = called("quantize", "no-such-model", tmp_path / "taken/file/out")
    assert "file is no folder that we may write to" in run.stderr


@pytest.mark.parametrize("text", ["[]", "{", '{"score": 3}', '{"bytes": {"original": 0}}', "\xff"])
def test_show_leaves_out_a_quality_json_of_someone_else(
    text: str, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "m2")
    (tmp_path / "m2/quality.json").write_bytes(text.encode("latin-1"))
    run = called("models", "show", tmp_path / "m2")
    assert run.returncode == 0
    assert "parameters" in run.stdout
    assert "quality.json is not shown, fulmen quantize did not write it" in run.stderr


def test_bench_times_a_model_against_the_machine(folder: Path) -> None:
    flags = ("--prompt", "40", "--tokens", "4", "--depth", "20", "--rounds", "1")
    run = fulmen("bench", "--model", folder, *flags, "--json")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert [row["kind"] for row in result["workloads"]] == ["prefill", "decode"]
    assert all(row["tokens_per_s"]["median"] > 0 for row in result["workloads"])
    assert all(0 < row["of_limit"] < 1 for row in result["workloads"])
    assert result["limits"]["read_gb_per_s"]


@needs_native
def test_bench_tells_where_a_token_goes(folder: Path) -> None:
    flags = ("--account", "--tokens", "3", "--depth", "70", "--batch", "2", "--rounds", "1")
    run = fulmen("bench", "--model", folder, *flags, "--json")
    assert run.returncode == 0, run.stderr
    account = json.loads(run.stdout)["account"]
    assert account["batch"] == 2
    rows = {row["work"]: row for row in account["rows"]}
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert sum(row["seconds"] for row in account["layers"]) == pytest.approx(account["seconds"])
    assert rows["between the calls"]["reading"] is None
    table = fulmen("bench", "--model", folder, *flags, "--layers")
    assert table.returncode == 0, table.stderr
    for words in ("handing over", "timed without instruments", "0 router", "layer by layer"):
        assert words in table.stdout


def test_an_account_without_kernels_is_refused(folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fulmen.cli", "bench", "--model", str(folder), "--account"],
        env=os.environ | {"FULMEN_ISA": "none"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    assert run.stdout == ""
    assert "an account times the C++ kernels, and they are not in use here" in run.stderr


def test_bench_times_single_operations_with_and_without_the_kernels() -> None:
    run = fulmen("bench", "--only", "rms", "--rounds", "1", "--threads", "1")
    assert run.returncode == 0, run.stderr
    assert "reading memory, 1 thread " in run.stdout
    assert "512 x 1024" in run.stdout
    command = [sys.executable, "-m", "fulmen.cli", "bench", "--only", "rms", "--rounds", "1"]
    environment = os.environ | {"FULMEN_ISA": "none"}
    plain = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert plain.returncode == 0, plain.stderr
    assert "running on plain torch" in plain.stderr
    result = json.loads(plain.stdout)
    assert result["limits"]["isa"] is None
    assert {row["name"] for row in result["ops"]} == {"rms norm"}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--threads", "0"), "--threads is 0, it must be at least 1"),
        (("--rounds", "0"), "--rounds is 0, it must be at least 1"),
        (("--only", "nothing"), "--only is 'nothing', no operation begins so, there are linear"),
        (("--model", "m", "--only", "linear"), "--only chooses operations, a model is timed whole"),
        (("--model", "m", "--prompt", "0", "--tokens", "0"), "--prompt and --tokens are both 0"),
        (("--tokens", "5"), "--tokens is for a model, --model names one"),
        (("--account",), "--account is for a model, --model names one"),
        (("--layers",), "--layers is for a model, --model names one"),
        (("--model", "m", "--layers"), "--layers belongs to --account, which is not given"),
        (("--model", "m", "--account", "--prompt", "9"), "--prompt is given, an account is of"),
        (("--model", "m", "--account", "--tokens", "0"), "--tokens is 0, an account needs"),
        (("--model", GOLDEN / "m2-tiny", "--account", "--depth", "999999"), "needs room for"),
        (
            ("--model", GOLDEN / "m2-tiny", "--account", "--dtype", "float64"),
            "float64 runs on plain torch: choose bfloat16 or float32",
        ),
        (("--model", "nowhere"), "nowhere is no path on this machine"),
        (("--model", GOLDEN / "m2-tiny", "--depth", "999999"), "needs room for"),
    ],
)
def test_a_flag_of_bench_that_cannot_be_right_is_one_sentence(
    flags: tuple[str, ...], sentence: str
) -> None:
    run = called("bench", *flags)
    assert run.stdout == ""
    assert_refused(run, sentence)
