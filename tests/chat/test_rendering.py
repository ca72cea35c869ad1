"""A chat template is a stranger's program: it renders within bounds or ends in a sentence."""

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.chat import TemplateFormat, rendering
from fulmen.chat.rendering import MAX_CHARS, MAX_TEMPLATE_CHARS, render_template
from tests.chat.helpers import M2
from tests.examples import examples

LOOP = "{% for a in range(99999) %}"
HOSTILE = {
    "three loops": f"{LOOP * 3}{'{% endfor %}' * 3}",
    "loops that write": f"{LOOP * 2}xxxxxxxxxxxx{'{% endfor %}' * 2}",
    "a long text": "{{ 'A' * (3 * 10 ** 9) }}",
    "a wide format": "{{ '%999999999d' % 3 }}",
    "a wide brace format": "{{ '{:>999999999}'.format(3) }}",
    "a wide text": "{{ 'a'.ljust(2000000000) }}",
    "a centred text": "{{ 'x' | center(10 ** 9) }}",
    "a huge number": "{{ (10 ** 9) ** (10 ** 7) }}",
    "a long list": "{{ ([0] * 10 ** 9) | length }}",
    "a text that doubles": "{% set ns = namespace(a='x') %}{% for i in range(60) %}"
    "{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
    "a replacement that grows": "{{ ('a' * 10 ** 6).replace('a', 'b' * 10 ** 5) }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a way out of the sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a broken template": "{% for x in %}",
    "a constant of the compiler": "{{ 'A' * 3 * 10 ** 9 }}",
    "many blocks": "{% if 1 %}" * 40_000 + "{% endif %}" * 40_000,
    "a list that doubles": "{% set ns = namespace(a=[0]) %}{% for i in range(60) %}"
    "{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "a list of lists": "{% set ns = namespace(a=[]) %}{% for i in range(9999) %}"
    "{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}",
    "a join": "{{ range(99999) | join('x' * 100000) }}",
    "indented JSON": "{{ [[1]] | tojson(indent=999999999) }}",
    "an indent": "{{ ('a\\n' * 100000) | indent(100000) }}",
    "a batch": "{{ [1] | batch(999999999, 0) | list | length }}",
    "a long error": "{{ missing['A' * 10000000].x }}",
    "a file": "{% include '/etc/passwd' %}",
    "an endless wrap": "{{ ('a' * 10 ** 7) | wordwrap(1) | length }}",
}


SLOW = {
    "a long sum": "{{ " + "1+" * 300_000 + "1 }}",
    "many attributes": "{{ a" + ".b" * 300_000 + " }}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}"
    "{% endif %}{% endmacro %}{{ m(60) }}",
    "a power of powers": "{% set n = 10 %}{{ (n ** (n ** n)) > 0 }}",
    "a slow filter": "{{ ([messages] * 100000) | sum(start=[]) | length }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_sentence_within_the_bounds(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(rendering, "MAX_SECONDS", 2.0)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"^the chat template failed: ") as error:
        render_template(HOSTILE[name], messages=[])
    assert time.monotonic() - start < 9
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    assert render_template("{{ a }}{{ 1 + 1 }}", a="ok ") == "ok 2"


@pytest.mark.parametrize("name", SLOW)
def test_a_template_that_takes_too_long_is_stopped(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(rendering, "MAX_SECONDS", 1.0)
    with pytest.raises(ValueError, match=r"^the chat template failed: it took more than 1 seconds"):
        render_template(SLOW[name], messages=[1])
    assert render_template("{{ a }}", a=1) == "1"


SIZES = st.sampled_from([1, 3, 1_000, 99_999, 10**9, 10**15])
TEXTS = st.recursive(
    st.sampled_from(["'A'", "messages[0].content", "(messages | string)"]),
    lambda inner: st.one_of(
        st.builds("({} * {})".format, inner, SIZES),
        st.builds("({0} + {0})".format, inner),
        st.builds("({} | center({}))".format, inner, SIZES),
        st.builds("({}.ljust({}))".format, inner, SIZES),
        st.builds("({}.replace('A', {}))".format, inner, inner),
        st.builds("({} | indent({}))".format, inner, SIZES),
        st.builds("({} | wordwrap({}))".format, inner, SIZES),
        st.builds("(range({}) | join({}))".format, SIZES, inner),
        st.builds("('%{}s' % {})".format, SIZES, inner),
        st.builds("('{{:>{}}}'.format({}))".format, SIZES, inner),
    ),
    max_leaves=4,
)
TEMPLATES = st.recursive(
    st.builds("{{{{ {} }}}}".format, TEXTS),
    lambda inner: st.one_of(
        st.builds("{{% for a in range({}) %}}{}{{% endfor %}}".format, SIZES, inner),
        st.builds("{{% macro m() %}}{}{{{{ m() }}}}{{% endmacro %}}{{{{ m() }}}}".format, inner),
        st.builds("{{% set x %}}{}{{% endset %}}{{{{ x }}}}{{{{ x }}}}".format, inner),
    ),
    max_leaves=3,
)


@settings(max_examples=examples(25), deadline=None)
@given(TEMPLATES)
def test_templates_that_grow_end_within_the_bounds(template: str) -> None:
    start = time.monotonic()
    with pytest.MonkeyPatch.context() as patch, suppress(ValueError):
        patch.setattr(rendering, "MAX_SECONDS", 0.5)
        assert len(render_template(template, messages=[{"content": "q"}])) <= MAX_CHARS + 1_000
    assert time.monotonic() - start < 20


def test_a_refusal_is_short() -> None:
    with pytest.raises(ValueError, match=r"^the chat template refused the messages: AA") as error:
        render_template("{{ raise_exception('A' * 1000000) }}")
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("executable", ["", "/nowhere/python", "/bin/false"])
def test_without_a_process_a_template_is_refused(
    monkeypatch: pytest.MonkeyPatch, executable: str
) -> None:
    monkeypatch.setattr(rendering, "_workers", rendering._Workers())
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(ValueError, match="a chat template is rendered in a"):
        render_template("{{ a }}", a=1)
    assert "hello" in M2.render([{"role": "user", "content": "hello"}])


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_worker_that_was_killed_while_idle_is_replaced() -> None:
    render_template("x")
    for worker in rendering._workers._idle:
        worker._process.kill()
        worker._process.wait()
    assert render_template("{{ a }}", a=1) == "1"


def test_a_template_is_short() -> None:
    with pytest.raises(ValueError, match="characters, it may have 1000000"):
        render_template("x" * (MAX_TEMPLATE_CHARS + 1))


def test_a_long_conversation_is_no_attack() -> None:
    text = "é" * 20_000_000
    format = TemplateFormat("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert format.render([{"role": "user", "content": text}]) == text


def test_messages_that_are_no_json_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="a chat template needs messages that are JSON"):
        render_template("{{ a }}", a=object())
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        render_template("{{ a }}", a=deep)


@settings(max_examples=examples(40), deadline=None)
@given(st.text(max_size=60), st.text(st.sampled_from("{}%# |()'\"abif 10*"), max_size=40))
def test_any_text_renders_or_is_one_sentence(value: str, template: str) -> None:
    sentence = None
    try:
        render_template(template, a=value, b=[value], i=3)
    except ValueError as error:
        sentence = str(error)
    assert sentence is None or sentence.startswith("the chat template ")
    assert sentence is None or "\n" not in sentence
    assert render_template("{{ a }}", a=value) == value


def test_threads_do_not_wait_for_a_template_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MAX_SECONDS", 2.0)
    done: list[str] = []

    def hang() -> None:
        with pytest.raises(ValueError, match="took more than"):
            render_template(HOSTILE["three loops"])
        done.append("hung")

    thread = threading.Thread(target=hang)
    thread.start()
    time.sleep(0.2)
    for number in range(5):
        assert render_template("{{ a }}", a=number) == str(number)
    done.append("others")
    thread.join()
    assert done == ["others", "hung"]


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX's")
def test_no_process_stays_behind() -> None:
    program = (
        "import os, signal, threading\n"
        "from fulmen.chat.rendering import render_template, _workers\n"
        "render_template('x')\n"
        "print(_workers._idle[0]._process.pid, flush=True)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    assert render_template('{{ a }}', a=1) == '1'\n"
        "    raise SystemExit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert render_template('{{ a }}', a=2) == '2'\n"
        "if {kills}: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for kills in (False, True):
        run = subprocess.run(
            [sys.executable, "-c", program.replace("{kills}", str(kills))],
            capture_output=True,
            text=True,
        )
        process_id = int(run.stdout)
        for _ in range(100):
            if not _is_running(process_id):
                break
            time.sleep(0.05)
        assert not _is_running(process_id)
        assert run.stderr == ""


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{process_id}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
