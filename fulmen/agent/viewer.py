"""A trajectory as one page for a browser: no script, no request, everything escaped.

    Trajectory -> view_inside -> html_page -> HTML, whose policy allows nothing but the style in it

Steps are folded, a step's tokens too, so that a browser lays out only what is opened. Characters
that could hide or turn around what a model or a file said are written out.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

from fulmen.agent.trajectory import Answer, Result, Sampled, Step, Trajectory
from fulmen.chat import Message, Tokenizer

_MAX_TEXT: Final = 200_000
"""Characters of one text that are shown"""
_MAX_TOKENS: Final = 20_000
"""Tokens of one answer that are shown"""
_ODD: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ud800-\udfff\ufe00-\ufe0d\ufeff\uffa0"
    r"\ufff0-\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
    r"|(?<![\u2000-\u33ff\U0001f000-\U0001faff])[\ufe0e\ufe0f]"
)
"""Characters that show nothing, or change how others show; a symbol may be told to have colours"""
_LEVELS: Final = (-0.1, -0.7, -2.3, -4.6)
"""Log-probabilities between which tokens have one colour: 0.9, 0.5, 0.1, 0.01"""

_STYLE: Final = """
:root { color-scheme: light dark; --line: #d8d8d8; --dim: #6a6a6a; --soft: #f4f4f4; --bad: #b00020;
  --add: #e4f6e6; --del: #fde8e8; --hunk: #5a4fcf; --p1: #fff; --p2: #fff3c4; --p3: #ffd9a8;
  --p4: #ffb3a7; --p5: #ff8a80; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --dim: #9a9a9a; --soft: #242424;
  --bad: #ff8a80; --add: #16351c; --del: #3d1a1a; --hunk: #a9a2ff; --p1: #1c1c1c; --p2: #4a4010;
  --p3: #5a3a10; --p4: #6a2a1c; --p5: #8a2020; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.3rem; margin: 0; overflow-wrap: anywhere; }
.facts { color: var(--dim); margin: .2rem 0 1rem; }
details { border-left: 2px solid var(--line); margin: .5rem 0; padding-left: .8rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
summary .more { color: var(--dim); }
pre { background: var(--soft); border-radius: 4px; font: 13px/1.45 ui-monospace, monospace;
  margin: .4rem 0; max-height: 40rem; overflow: auto; padding: .5rem .7rem; tab-size: 4;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.role { color: var(--dim); font-size: .85rem; margin: .6rem 0 0; }
.thought, .thought pre { color: var(--dim); background: none; font-style: italic; }
.error, .error pre { color: var(--bad); }
.diff span { display: block; min-height: 1.45em; }
.diff .add { background: var(--add); }
.diff .del { background: var(--del); }
.diff .hunk { color: var(--hunk); }
.tokens span { border-radius: 2px; }
.p1 { background: var(--p1); } .p2 { background: var(--p2); } .p3 { background: var(--p3); }
.p4 { background: var(--p4); } .p5 { background: var(--p5); }
.forced { text-decoration: underline dotted; }
"""


def view(
    trajectory: Trajectory, *, title: str = "trajectory", tokenizer: Tokenizer | None = None
) -> str:
    """Return a page that shows a trajectory.

    tokenizer  of the model; without it tokens are shown as ids
    """
    facts = f'<p class="facts">{escaped(trajectory_facts(trajectory))}</p>'
    inside = "\n".join(view_inside(trajectory, tokenizer=tokenizer))
    return html_page(title, f"<h1>{escaped(title)}</h1>\n{facts}\n{inside}")


def html_page(title: str, body: str, *, style: str = "") -> str:
    """Return a page that may load nothing and run nothing.

    body   HTML in which everything that was said is escaped
    style  rules beside those of trajectories
    """
    style = _STYLE + style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="referrer" content="no-referrer">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


def view_inside(
    trajectory: Trajectory, *, tokenizer: Tokenizer | None = None, has_tokens: bool = True
) -> Iterator[str]:
    """Yield what a page shows of a trajectory, piece by piece; each is HTML that is whole.

    has_tokens  show the ids of answers too
    """
    for message in trajectory.system:
        yield from _folded("system", message.content)
    summaries = {one.num_steps: one for one in trajectory.compactions if one.text}
    for place, step in enumerate(trajectory.steps):
        if place in summaries:
            yield from _folded("summary of all before", summaries[place].text)
        for message in step.said:
            yield from _message(message)
        is_last = place == len(trajectory.steps) - 1
        yield "\n".join(_step(place + 1, step, tokenizer, is_open=is_last, has_tokens=has_tokens))
    for message in trajectory.said:
        yield from _message(message)


def trajectory_facts(trajectory: Trajectory) -> str:
    """Return a line about a trajectory: its tokens, seconds, end and score."""
    answers, usage = [step.answer for step in trajectory.steps], trajectory.usage
    facts = [
        f"{len(answers)} steps",
        f"{trajectory.num_new_tokens:,} new tokens",
        f"{usage['thinking_tokens']:,} of thought",
        f"{usage['prompt_tokens']:,} of prompts",
        f"{usage['cached_tokens']:,} of them cached",
        f"{sum(one.seconds for one in answers):.1f} s",
    ]
    if trajectory.end is not None:
        facts.append(f"ended: {trajectory.end}")
    if (score := trajectory.score) is not None:
        parts = ", ".join(f"{name} {value:g}" for name, value in score.parts.items())
        facts.append(f"score {score.value:g}" + (f" ({parts})" if parts else ""))
    return " · ".join(facts)


def _step(
    number: int, step: Step, tokenizer: Tokenizer | None, *, is_open: bool, has_tokens: bool
) -> Iterator[str]:
    answer, message = step.answer, step.answer.message
    calls = ", ".join(call.name for call in message.tool_calls)
    shown = calls or message.content.strip().partition("\n")[0][:80] or answer.finish_reason
    more = f"{answer.num_new_tokens:,} tokens, {answer.seconds:.1f} s"
    yield (
        f"<details{' open' if is_open else ''}><summary>{number} · {escaped(shown)} "
        f'<span class="more">{more}</span></summary>'
    )
    if message.thinking:
        yield f'<div class="thought">{_pre(message.thinking)}</div>'
    if message.content:
        yield _pre(message.content)
    results = {result.call: result for result in step.results}
    for place, call in enumerate(message.tool_calls):
        yield f'<p class="role">{escaped(call.name)}</p>'
        yield _arguments(call.arguments)
        if (result := results.get(place)) is not None:
            yield from _result(result)
        else:
            yield '<p class="role">no result</p>'
    if answer.finish_reason != "stop":
        yield f'<p class="role">the answer ended by {escaped(answer.finish_reason)}</p>'
    if answer.sampled is not None and has_tokens:
        yield from _tokens(answer, answer.sampled, tokenizer)
    yield "</details>"


def _message(message: Message) -> list[str]:
    return [f'<p class="role">{escaped(message.role)}</p>', _pre(message.content)]


def _folded(name: str, text: str) -> list[str]:
    return [f"<details><summary>{escaped(name)}</summary>{_pre(text)}</details>"]


def _arguments(arguments: Mapping[str, Any]) -> str:
    lines = []
    for name, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"{name}: {text}" if "\n" not in text else f"{name}:\n{text}")
    return _pre("\n".join(lines)) if lines else ""


def _result(result: Result) -> Iterator[str]:
    how = "error" if result.is_error else "result"
    yield f'<div class="{how}"><p class="role">{how}, {result.seconds:.1f} s</p>{_pre(result.text)}'
    diff = result.details.get("diff")
    if isinstance(diff, str) and diff:
        lines = [_diff_line(line) for line in diff[:_MAX_TEXT].split("\n")]
        yield f'<pre class="diff">{"".join(lines)}</pre>'
    yield "</div>"


def _diff_line(line: str) -> str:
    kind = {"+": "add", "-": "del", "@": "hunk"}.get(line[:1], "same")
    return f'<span class="{kind}">{escaped(line)}</span>'


def _tokens(answer: Answer, sampled: Sampled, tokenizer: Tokenizer | None) -> Iterator[str]:
    ids, forced = sampled.answer_ids, frozenset(sampled.forced)
    texts: Sequence[str] = ()
    if tokenizer is not None:
        texts = [tokenizer.decode([id]) for id in ids[:_MAX_TOKENS]]
    yield f'<details class="tokens"><summary>{len(ids):,} tokens</summary><pre>'
    shown = zip_longest(ids[:_MAX_TOKENS], sampled.logprobs[:_MAX_TOKENS], texts)
    yield "".join(
        _token(place, id, logprob, text, is_forced=place in forced)
        for place, (id, logprob, text) in enumerate(shown)
    )
    rest = len(ids) - _MAX_TOKENS
    yield f"\n({rest:,} more)</pre></details>" if rest > 0 else "</pre></details>"


def _token(place: int, id: int, logprob: float | None, text: str | None, *, is_forced: bool) -> str:
    level = 1 if logprob is None else 1 + sum(logprob < limit for limit in _LEVELS)
    known = "unknown" if logprob is None else f"{logprob:.3f}"
    kind = f"p{level}" + (" forced" if is_forced else "")
    label = f"{id} " if text is None else text
    hint = f"{place}: id {id}, log-probability {known}" + (", forced" if is_forced else "")
    return f'<span class="{kind}" title="{hint}">{escaped(label)}</span>'


def _pre(text: str) -> str:
    return f"<pre>\n{escaped(text)}</pre>"  # a browser drops the first line break


def escaped(text: str) -> str:
    """Return text as HTML shows it: cut where it is long, odd characters written out."""
    rest = len(text) - _MAX_TEXT
    shown = text[:_MAX_TEXT] + (f"\n({rest:,} more characters)" if rest > 0 else "")
    return html.escape(_ODD.sub(_written_out, shown))


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 256:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"
