"""The page's files over HTTP: what is served, to whom, and under which policy."""

import http.client
import re
from collections.abc import Iterator

import pytest

from fulmen.server.page_files import FOLDER, page_files
from tests.server.helpers import Answer, ask, scripted, served, served_checkpoint

KEY = "sk-page-0123"
BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(scripted("m2", "Fine.")) as url:
        yield url


@pytest.fixture(scope="module")
def keyed() -> Iterator[str]:
    with served(scripted("m2", "Fine."), api_keys=(KEY,)) as url:
        yield url


def test_a_browser_gets_the_page_at_the_root_and_a_program_a_greeting(url: str) -> None:
    page = ask(url, "/", headers=BROWSER)
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.body == (FOLDER / "index.html").read_bytes()
    assert page.headers["vary"] == "accept"
    for headers in ({}, {"accept": "*/*"}, {"accept": "application/json"}):
        greeting = ask(url, "/", headers=headers)
        assert greeting.json()["name"] == "fulmen"
        assert greeting.headers["vary"] == "accept"
        assert "content-security-policy" not in greeting.headers
    assert ask(url, "/api/hello", headers=BROWSER).json()["name"] == "fulmen"


def test_every_file_has_a_policy_under_which_only_the_page_itself_runs(url: str) -> None:
    assert {"index.html", "main.js", "style.css", "icon.svg"} <= page_files().keys()
    for path, file in page_files().items():
        answer = ask(url, f"/page/{path}")
        assert (answer.status, answer.body) == (200, (FOLDER / path).read_bytes())
        assert answer.headers["content-type"] == file.media_type
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
        policy = dict(
            part.strip().partition(" ")[::2]
            for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert "unsafe" not in answer.headers["content-security-policy"]


def test_the_page_names_only_files_that_are_served_and_no_script_of_its_own() -> None:
    page = (FOLDER / "index.html").read_text()
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert named
    for path in named:
        assert path.startswith("page/")  # so it works behind any prefix
        assert path.removeprefix("page/") in page_files()
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=", page)


def test_a_file_is_not_sent_again_while_it_is_the_same(url: str) -> None:
    etag = ask(url, "/page/main.js").headers["etag"]
    for sent in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = ask(url, "/page/main.js", headers={"if-none-match": sent})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag), sent
        assert "content-security-policy" in again.headers
    for sent in ('"other"', etag.strip('"'), ""):
        assert ask(url, "/page/main.js", headers={"if-none-match": sent}).status == 200, sent
    etags = {file.etag for file in page_files().values()}
    assert len(etags) == len(page_files())


def test_head_tells_what_get_would_send(url: str) -> None:
    for path, headers in (("/page/style.css", {}), ("/", BROWSER)):
        whole = ask(url, path, headers=headers)
        head = ask(url, path, headers=headers, method="HEAD")
        assert (head.status, head.body) == (200, b"")
        for name in ("content-type", "content-length", "etag", "content-security-policy"):
            assert head.headers[name] == whole.headers[name]
    assert ask(url, "/page/main.js", {}).status == 405


@pytest.mark.parametrize(
    "path",
    [
        *("/page/", "/page/nothing.js", "/page/../page_files.py", "/page/..%2fpage_files.py"),
        *("/page/%2e%2e/page_files.py", "/page//etc/passwd", "/page/%2fetc%2fpasswd"),
        *("/page/..\\page_files.py", "/page/main.js/", "/page/main.js%00", "/page/MAIN.JS"),
        *("/page/./main.js", "/page/" + "a" * 4000, "/page/%ff"),
    ],
)
def test_a_path_reaches_nothing_but_the_files(url: str, path: str) -> None:
    answer = ask(url, path)
    assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
    assert len(answer.body) < 1000


def test_a_path_is_taken_as_it_is_sent(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.putrequest("GET", "/page/../../pyproject.toml", skip_accept_encoding=True)
    connection.endheaders()
    assert connection.getresponse().status == 404
    connection.close()


def test_the_page_is_shown_before_a_key_is_known_and_nothing_else_is(keyed: str) -> None:
    assert ask(keyed, "/", headers=BROWSER).body == page_files()["index.html"].content
    assert ask(keyed, "/page/main.js").status == 200
    assert ask(keyed, "/page/nothing.js").status == 404
    for path in ("/", "/api/hello", "/v1/models", "/v1/sessions"):
        assert ask(keyed, path).status == 401, path
    for path in ("/api/hello", "/v1/models", "/v1/sessions", "//", "/pages/x"):
        assert ask(keyed, path, headers=BROWSER).status == 401, path
    allowed = {**BROWSER, "authorization": f"Bearer {KEY}"}
    assert ask(keyed, "/", headers=allowed).headers["content-type"].startswith("text/html")


def test_a_server_without_the_page_has_none_of_it() -> None:
    def kinds(*answers: Answer) -> list[tuple[int, str]]:
        return [(one.status, one.headers["content-type"]) for one in answers]

    with served(scripted("m2", "Fine."), no_page=True) as url:
        assert ask(url, "/", headers=BROWSER).json()["name"] == "fulmen"
        assert kinds(ask(url, "/page/main.js")) == [(404, "application/json")]
    with served(scripted("m2", "Fine."), no_page=True, api_keys=(KEY,)) as url:
        answers = ask(url, "/", headers=BROWSER), ask(url, "/page/main.js")
        assert kinds(*answers) == [(401, "application/json")] * 2


def test_another_origin_that_is_allowed_may_change_metadata() -> None:
    origin = "http://localhost:3000"
    headers = {"origin": origin, "access-control-request-method": "PATCH"}
    with served(scripted("m2", "Fine."), allowed_origins=(origin,)) as url:
        answer = ask(url, "/v1/sessions/x", method="OPTIONS", headers=headers)
        assert answer.status == 200
        assert "PATCH" in answer.headers["access-control-allow-methods"]
    with served(scripted("m2", "Fine.")) as url:
        answer = ask(url, "/v1/sessions/x", method="OPTIONS", headers=headers)
        assert "access-control-allow-origin" not in answer.headers
        body, plain = b'{"metadata": {}}', {"content-type": "text/plain"}
        assert ask(url, "/v1/sessions/x", body, method="PATCH", headers=plain).status == 415


def test_a_model_has_a_card_in_both_languages_where_its_weights_are(url: str) -> None:
    assert ask(url, "/v1/models").json()["data"][0]["card"] is None
    with served_checkpoint("m2", aliases=("gpt-4o",)) as here:
        listed = ask(here, "/v1/models").json()["data"]
        assert listed[0]["card"].keys() == {"en", "de"}
        assert listed[0]["card"] == listed[1]["card"]
        assert ask(here, "/v1/models/gpt-4o").json() == listed[1]
        assert "- Can: think before it answers, call tools" in listed[0]["card"]["en"].split("\n")
