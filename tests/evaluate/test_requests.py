"""A study by requests: the runs at a URL are those of the model that is here, and say as much."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fulmen.chat import ChatModel
from fulmen.evaluate import REQUEST_FIELDS, Study, StudyConfig, plot_svg, summarize, tables
from fulmen.llm import LocalModel, PeerError, RemoteModel
from tests.cli.test_cli import assert_refused, called
from tests.evaluate.helpers import PARAMS, LuckyTasks, load
from tests.llm.remote.fakes import Fake, delta, listed, sse
from tests.server.helpers import served

CONFIG = StudyConfig(
    budgets=(0, 4, 16), num_thoughts=2, answer_tokens=3, num_votes=4, is_checked=True
)
ABOUT = {"model": "tiny", "task": "luck"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    local = LocalModel(load(tmp_path_factory.mktemp("m2"), "m2"))
    yield local
    asyncio.run(local.close())


@pytest.fixture(scope="module")
def url(model: LocalModel) -> Iterator[str]:
    with served(model, answer_share=0) as address:
        yield address


async def runs_of(
    model: ChatModel, num_tasks: int, path: Path | None = None, **options: Any
) -> Study:
    study = Study(CONFIG, ABOUT, path)
    settings: dict[str, Any] = {"params": PARAMS, "max_running": 8, **options}
    await study.run_by_requests(model, LuckyTasks(), num_tasks=num_tasks, **settings)
    return study


def test_runs_at_a_url_are_those_of_the_model_that_is_here(
    model: LocalModel, url: str, tmp_path: Path
) -> None:
    async def work() -> None:
        here = await runs_of(model, 6)
        async with RemoteModel(url) as remote:
            there = await runs_of(remote, 6)
            assert there.tasks == here.tasks
            one_by_one = await runs_of(remote, 6, max_running=1)
            assert one_by_one.tasks == here.tasks
            file = tmp_path / "runs.json"
            await runs_of(remote, 2, file)
            assert (await runs_of(remote, 6, file)).tasks == here.tasks

    asyncio.run(asyncio.wait_for(work(), 100))


def test_a_summary_has_one_kind_of_runs(url: str) -> None:
    async def work() -> Study:
        async with RemoteModel(url) as remote:
            return await runs_of(remote, 8)

    study = asyncio.run(asyncio.wait_for(work(), 100))
    summary = json.loads(json.dumps(summarize(study)))
    assert list(summary["drawn_tokens"]) == ["separate"]
    assert "difference" not in summary
    for row in summary["budgets"]:
        assert "fork" not in row
        assert 0 <= row["separate"]["accuracy"]["mean"] <= 1
    assert summary["budgets"][0]["separate"]["thinking_tokens"] == 0
    assert 0 < summary["budgets"][2]["separate"]["thinking_tokens"] <= 16
    assert summary["budgets"][2]["votes"][0]["likeliest"] is not None
    assert [column.header for column in tables(summary)[0].columns][4] == "accuracy"
    assert plot_svg(summary).startswith("<svg")


def test_a_server_without_log_probabilities_has_no_likeliest_vote() -> None:
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 9,
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    stream = [sse({**delta("stop", content="aei"), "usage": usage})]

    async def work() -> Study:
        fake = Fake(stream, models=listed("vllm"))
        sends = frozenset(REQUEST_FIELDS)
        async with RemoteModel("http://fake", transport=fake, sends=sends) as remote:
            return await runs_of(remote, 2)

    summary = summarize(asyncio.run(asyncio.wait_for(work(), 20)))
    assert summary["budgets"][2]["votes"][0]["likeliest"] is None
    assert summary["budgets"][2]["separate"]["thinking_tokens"] == 3
    assert len(tables(summary)) == 4
    assert plot_svg(summary).startswith("<svg")


def test_a_failure_ends_the_study_and_keeps_what_is_done(url: str, tmp_path: Path) -> None:
    file = tmp_path / "runs.json"

    async def work() -> None:
        async with RemoteModel(url) as remote:
            await runs_of(remote, 2, file)
        broken = Fake([b""], models=listed("vllm"))
        async with RemoteModel("http://fake", transport=broken) as remote:
            with pytest.raises(PeerError, match="ended before the answer did"):
                await runs_of(remote, 4, file)
        assert len(asyncio.all_tasks()) <= 2  # this one, and who waits for it

    asyncio.run(asyncio.wait_for(work(), 60))
    assert len(json.loads(file.read_text())["tasks"]) == 2


def test_the_command_asks_a_url(url: str, tmp_path: Path) -> None:
    out = tmp_path / "runs.json"
    flags = ("scale", "--url", url, "--tasks", "2", "--budgets", "0,4", "--out", out)
    run = called(*flags, "--answer-tokens", "4")
    assert run.returncode == 0, run.stderr
    assert "accuracy" in run.stdout
    assert "forked" not in run.stdout.splitlines()[0]
    assert len(json.loads(out.read_text())["tasks"]) == 2
    assert_refused(called(*flags, "--check"), "--check is for a model on this machine")
