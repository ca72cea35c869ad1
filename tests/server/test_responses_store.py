"""Stored responses: who finds them, what goes when there are too many, and a store that breaks."""

import json
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from fulmen.server.errors import Refusal
from fulmen.server.responses_store import ResponseStore
from tests.server.helpers import answering, ask, scripted, served
from tests.server.test_openai_sdk import ANSWER, client_of
from tests.warm import python

DAY = 86400.0


def response(id: str, text: str = "", status: str = "completed") -> dict[str, Any]:
    return {"id": id, "status": status, "output": [{"id": f"msg_{id[5:]}0000", "text": text}]}


def store(
    file: Path | None = None,
    now: Callable[[], float] = time.time,
    max_bytes: int = 2**20,
    max_age_seconds: float = DAY,
) -> ResponseStore:
    return ResponseStore(file, max_bytes=max_bytes, max_age_seconds=max_age_seconds, now=now)


def has(kept: ResponseStore, id: str, scope: str = "") -> bool:
    try:
        return bool(kept.get(id, scope=scope).response["id"] == id)
    except Refusal:
        return False


def test_each_scope_has_room_of_its_own() -> None:
    clock = iter(range(10**6))
    kept = store(now=lambda: float(next(clock)), max_bytes=3000, max_age_seconds=1e9)
    kept.put(response("resp_other"), [], scope="other", previous=None)
    for number in range(10):
        kept.put(response(f"resp_{number}", "x" * 900), [], scope="own", previous=None)
    assert [number for number in range(10) if has(kept, f"resp_{number}", "own")] == [7, 8, 9]
    assert has(kept, "resp_other", "other")
    kept.put(response("resp_large", "x" * 5000), [], scope="own", previous=None)
    assert has(kept, "resp_large", "own")  # the newest stays, whatever its size
    assert not has(kept, "resp_9", "own")


def test_one_that_is_used_stays_and_others_grow_old(tmp_path: Path) -> None:
    now = [0.0]
    kept = store(tmp_path / "r", now=lambda: now[0])
    for id in ("resp_a", "resp_b"):
        kept.put(response(id), [], scope="", previous=None)
    for _ in range(3):
        now[0] += 0.7 * DAY
        assert has(kept, "resp_a")
    assert not has(kept, "resp_b")


def test_a_history_is_all_that_was_said() -> None:
    kept, previous = store(), None
    for number in range(300):
        id = f"resp_{number}"
        kept.put(response(id), [{"asked": number}], scope="", previous=previous)
        previous = id
    items = kept.history("resp_299", scope="")
    assert [item["asked"] for item in items[::2]] == list(range(300))
    assert [item["id"] for item in items[1::2]] == [f"msg_{n}0000" for n in range(300)]
    kept.delete("resp_100", scope="")
    with pytest.raises(Refusal, match="goes on from 'resp_100', which is not stored any more"):
        kept.history("resp_299", scope="")
    kept.put(response("resp_100", status="failed"), [], scope="", previous="resp_99")
    with pytest.raises(Refusal, match="'resp_100' is failed, only one that has ended can go on"):
        kept.history("resp_299", scope="")


def test_an_item_is_found_by_its_own_id() -> None:
    kept = store()
    kept.put(response("resp_ab12", "Yes"), [], scope="own", previous=None)
    assert kept.item("msg_ab120000", scope="own")["text"] == "Yes"
    for id, scope in (("msg_ab120000", "other"), ("msg_ab120001", "own"), ("", "own"), ("x", "")):
        with pytest.raises(Refusal, match="no item with the id"):
            kept.item(id, scope=scope)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r"
    store(file).close()
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(ValueError, match="it has the format 7, 1 is needed"):
        store(file)


# ---- through the server


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_that_cannot_be_stored_goes_out(
    streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(*_: Any, **__: Any) -> None:
        raise OSError("/secret/place: the disk is full")

    monkeypatch.setattr(ResponseStore, "put", put)
    with served(answering("m2", lambda _: ANSWER)) as url:
        reply = ask(url, "/v1/responses", {"input": "?", "stream": streams})
        refused = ask(url, "/v1/responses", {"input": "?", "background": True})
    assert reply.status == 200
    found = json.loads(reply.text.split("data: ")[-1]) if streams else json.loads(reply.text)
    found = found["response"] if streams else found
    assert (found["status"], found["store"]) == ("completed", False)
    assert refused.status == 500
    assert "the response cannot be stored" in refused.text
    assert "secret" not in refused.text


@pytest.mark.parametrize("ends_it", ["delete", "cancel"])
def test_a_response_that_is_just_stored_is_not_ended_halfway(
    ends_it: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, is_at_end, may_end = ResponseStore.put, threading.Event(), threading.Event()

    def slow_put(self: ResponseStore, response: Any, *args: Any, **fields: Any) -> None:
        if response["status"] == "completed":
            is_at_end.set()
            assert may_end.wait(30)
        put(self, response, *args, **fields)

    monkeypatch.setattr(ResponseStore, "put", slow_put)
    with served(answering("m2", lambda _: ANSWER)) as url, client_of(url) as client:
        id = client.responses.create(model="m2", input="?", background=True).id
        assert is_at_end.wait(30)
        assert client.responses.retrieve(id).status == "in_progress"
        end = getattr(client.responses, ends_it)
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(end, id)
            time.sleep(0.1)
            may_end.set()
        if ends_it == "cancel":
            assert ended.result().status == "completed"
            assert client.responses.retrieve(id).status == "completed"
            events = list(client.responses.retrieve(id, stream=True))
            assert events[-1].type == "response.completed"
        else:
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(id)


@pytest.mark.parametrize(("seconds", "status"), [(30.0, "completed"), (0.2, "failed")])
def test_a_background_response_may_finish_while_the_server_stops(
    seconds: float, status: str, tmp_path: Path
) -> None:
    model = scripted("m2", "</think>\n\n" + "word " * 40, delay_seconds=0.005, piece_chars=1)
    settings: Any = {"transcripts": tmp_path / "t", "drain_seconds": seconds}
    with served(model, **settings) as url, client_of(url) as client:
        id = client.responses.create(model="m2", input="?", background=True).id
    with served(answering("m2", lambda _: ANSWER), **settings) as url, client_of(url) as client:
        found = client.responses.retrieve(id)
    assert found.status == status
    if found.error is not None:
        assert found.error.message == "the server stopped while it ran"


OPENER = """
import sys
from pathlib import Path
from tests.server.test_responses_store import response, store
ready = Path(sys.argv[1] + ".ready")
with ready.open("a") as file:
    file.write(".")
while ready.stat().st_size < 4:  # all begin at once
    pass
rows = store(Path(sys.argv[1]))
rows.put(response(f"resp_{sys.argv[2]}"), [], scope="a", previous=None)
"""


def test_processes_that_start_together_make_one_database(tmp_path: Path) -> None:
    file = tmp_path / "t"
    processes = [
        subprocess.Popen(python("-c", OPENER, file, str(number)), stderr=subprocess.PIPE)
        for number in range(4)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    assert all(store(file).get(f"resp_{number}", scope="a") for number in range(4))
