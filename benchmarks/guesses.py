"""Speed with guesses from a request's own text, where text repeats itself and where it does not.

    python benchmarks/guesses.py
    python benchmarks/guesses.py --model CHECKPOINT --drafts 0,3,7

Two conversations with a real model: a file of this repository that is to be repeated with one name
changed, answered greedily, and a question whose answer is prose, sampled, for a small model that
always says the likeliest soon repeats itself. First the answer: with guesses
it must be the one without, id by id and to the bit of every log-probability. Then tokens a second
of the answer, its prompt known from before, in alternating rounds; how many tokens a step makes;
and which share of the guesses was right.
"""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import torch
import typer
from measure import ROOT, console, label, print_json, print_setup, print_wide, run, step
from rich.table import Table

from fulmen.bench import Spread, until_steady, use_threads
from fulmen.chat import Message
from fulmen.engine import Engine, EngineConfig
from fulmen.llm import LLM
from fulmen.sampling import SamplingParams

CODE = ROOT / "benchmarks/arrivals.py"
MOST_CODE = 1400
"""Characters of the file; the last line is whole."""
OLD_NAME, NEW_NAME = "arrivals", "starts"
PROSE = "Tell me in detail how a lighthouse works, and what its keeper did through a winter."


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and what it took."""

    said: list[tuple[int, float]]
    """(token id, log-probability)"""
    seconds: float
    num_steps: int
    num_drafted: int
    num_accepted: int


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its sampling."""

    prompt_ids: list[int]
    params: SamplingParams


def make_questions(llm: LLM, num_tokens: int) -> dict[str, Question]:
    """By what they ask for; answers have num_tokens, whatever they are."""
    code = CODE.read_text(encoding="utf-8")[:MOST_CODE].rpartition("\n")[0]
    edit = (
        f"Repeat this file, with {OLD_NAME} renamed to {NEW_NAME} and no other words:\n\n"
        f"```python\n{code}\n```"
    )
    params = SamplingParams(seed=0, max_tokens=num_tokens, ignore_eos=True)
    return {
        name: Question(
            llm.format.encode([Message(role="user", content=text)], tokenizer=llm.tokenizer),
            replace(params, temperature=temperature),
        )
        for name, text, temperature in (("code edit", edit, 0.0), ("prose", PROSE, 1.0))
    }


def answer(engine: Engine, question: Question) -> Answer:
    """One answer."""
    before = engine.stats
    start = time.perf_counter()
    engine.add_request(question.prompt_ids, question.params)
    said = []
    while engine.has_unfinished:
        said += [(output.token_id, output.logprob) for output in step(engine)]
    seconds = time.perf_counter() - start
    after = engine.stats
    return Answer(
        said,
        seconds,
        after.num_steps - before.num_steps,
        after.num_drafted_tokens - before.num_drafted_tokens,
        after.num_accepted_tokens - before.num_accepted_tokens,
    )


def check_answers(engines: Mapping[int, Engine], questions: Mapping[str, Question]) -> None:
    """Exits unless every engine says the same, to the bit."""
    for name, question in questions.items():
        answers = {count: answer(engine, question) for count, engine in engines.items()}
        expected = next(iter(answers.values())).said
        wrong = [count for count, found in answers.items() if found.said != expected]
        if wrong:
            console.print(f"wrong: {name}: {wrong} guesses change what is said", style="red")
            sys.exit(1)
        console.print(f"{name}: the same {len(expected)} tokens whatever is guessed, to the bit")


def measure(
    engines: Mapping[int, Engine], questions: Mapping[str, Question], rounds: int
) -> list[dict[str, Any]]:
    """One row for each text and number of guesses."""
    found: dict[tuple[str, int], list[Answer]] = {}
    for name, question in questions.items():
        for engine in engines.values():
            until_steady(lambda: answer(engine, question).seconds)  # noqa: B023
        for index in range(rounds):
            for count in engines if index % 2 == 0 else reversed(engines):
                found.setdefault((name, count), []).append(answer(engines[count], question))
    rows = []
    fewest = min(engines)
    for (name, count), answers in found.items():
        plain = found[name, fewest]
        last = answers[-1]
        num_tokens = len(last.said)
        rows.append(
            {
                "text": name,
                "num_draft_tokens": count,
                "tokens_per_s": asdict(Spread.of([num_tokens / one.seconds for one in answers])),
                "speedup": statistics.median(
                    [a.seconds / b.seconds for a, b in zip(plain, answers, strict=True)]
                ),
                "tokens_per_step": num_tokens / last.num_steps,
                "num_drafted_tokens": last.num_drafted,
                "num_accepted_tokens": last.num_accepted,
            }
        )
    return rows


def print_table(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Tokens a second by text and guesses."""
    table = Table(title=title)
    table.add_column("text")
    for column in (
        *("guesses", "tokens/s", "low to high", "speedup"),
        *("tokens a step", "guessed", "right"),
    ):
        table.add_column(column, justify="right")
    previous = None
    for row in rows:
        if previous not in (None, row["text"]):
            table.add_section()
        rates, drafted = row["tokens_per_s"], row["num_drafted_tokens"]
        table.add_row(
            row["text"] if row["text"] != previous else "",
            str(row["num_draft_tokens"]),
            f"{rates['median']:.1f}",
            f"{rates['low']:.1f} to {rates['high']:.1f}",
            f"{row['speedup']:.2f}x",
            f"{row['tokens_per_step']:.2f}",
            str(drafted),
            f"{row['num_accepted_tokens'] / drafted:.0%}" if drafted else "",
        )
        previous = row["text"]
    print_wide(table)


def main(
    model: Annotated[str, typer.Option(help="A folder, a catalog name or a hub id.")] = "smollm2",
    drafts: Annotated[str, typer.Option(help="Most guesses a step.")] = "0,3,15",
    new_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 300,
    threads: Annotated[int, typer.Option(help="How many.")] = torch.get_num_threads(),
    rounds: Annotated[int, typer.Option(help="How often everything is measured.")] = 5,
) -> None:
    """Measures guesses. A table goes to stderr, one JSON line to stdout."""
    counts = sorted({int(part) for part in drafts.split(",")})
    use_threads(threads)
    llm = LLM.load(model, engine_config=EngineConfig(max_num_seqs=1))
    config = llm.engine.model.config
    setup = print_setup(threads, {model: config})
    engines = {
        count: Engine(llm.engine.model, EngineConfig(max_num_seqs=1, num_draft_tokens=count))
        for count in counts
    }
    questions = make_questions(llm, new_tokens)
    check_answers(engines, questions)
    rows = measure(engines, questions, rounds)
    title = label(model, config)
    print_table(rows, f"{title}, answers of {new_tokens} tokens, {threads} threads")
    print_json(
        "guesses",
        {
            "model": model,
            "dtype": str(config.torch_dtype).removeprefix("torch."),
            "shapes": {key: value for key, value in config.to_dict().items() if type(value) is int},
            **setup,
            "rounds": rounds,
            "new_tokens": new_tokens,
            "prompt_lengths": {name: len(asked.prompt_ids) for name, asked in questions.items()},
            "results": rows,
        },
    )


if __name__ == "__main__":
    run(main)
