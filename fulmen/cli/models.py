"""fulmen models: the models of the catalog and checkpoints, listed, shown, fetched, checked."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from fulmen.cli import completion
from fulmen.cli.help import Command, Group, examples
from fulmen.cli.options import IgnoreInFileOption, JsonOption
from fulmen.cli.output import print_json, print_table
from fulmen.cli.quantize import quality_table

if TYPE_CHECKING:
    from fulmen.catalog import Card
    from fulmen.checkpoints import Checkpoint

models_app = typer.Typer(
    cls=Group,
    help="List, show, fetch and check models.",
    no_args_is_help=True,
    epilog=examples("""
fulmen models list
fulmen models show minimax-m2
fulmen models pull smollm2
fulmen models check path/to/folder
"""),
)

_KEYS: Final = """
name, title, maker, technical_lead, licence, is_commercial, folder, hub, code, context,
thinking_budget, system, agent_profile, total_parameters, active_parameters; sampling: temperature,
top_p, top_k, repetition_window; paper: arxiv, title, year, authors, authors_complete
"""
_CARD_KEYS: Final = """
text: summary, stage, architecture, training, running, licence, limits, examples (by kind),
greeting; record (of a model that comes with Fulmen): machine, seed, stages (name, tokens, seconds),
scores (name, tasks, right, low, high)
"""
_FOLDER_KEYS: Final = """
path, model_type, num_layers, total_parameters, active_parameters, bytes, weights;
quality (of a rounded model): bytes, mean_relative_error, worst_tensors (by name), drift;
quality's bytes: original, rounded; drift: num_tokens, top1_agreement, mean_kl, mean_logit_drift,
max_logit_drift, original_perplexity, perplexity
"""

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name that fulmen models list shows, or a folder.",
        autocompletion=completion.models,
    ),
]


@models_app.command(
    "list",
    cls=Command,
    epilog=examples("fulmen models list", {"JSON": f"a list of: {_KEYS.strip()}"}),
)
def models_list(as_json: JsonOption = False) -> None:
    """List the models of the catalog."""
    from rich.table import Table

    from fulmen.catalog import context_of, list_cards, published_config
    from fulmen.models import count_parameters

    if as_json:
        print_json([_card_values(card) for card in list_cards()])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "total", "active", "context"):
        table.add_column(column, justify="left" if column == "name" else "right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    table.add_column("title", no_wrap=True)
    for card in list_cards():
        counts = count_parameters(published_config(card.name))
        total, active = map(_in_short, (counts.total, counts.active))
        title = card.title if card.folder is None else f"{card.title}, comes with Fulmen"
        table.add_row(card.name, total, active, f"{context_of(card):,}", card.licence, title)
    print_table(table)


def _in_short(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count < 10**8 else f"{count / 1e9:.2f} B"


def _card_values(card: "Card") -> dict[str, Any]:
    """Return the facts of a card for JSON, without its sentences."""
    from fulmen.catalog import context_of, published_config
    from fulmen.models import count_parameters

    counts = count_parameters(published_config(card.name))
    values = asdict(card) | {"context": context_of(card)}
    for name in ("config", "text", "source"):
        del values[name]
    return values | {"total_parameters": counts.total, "active_parameters": counts.active}


@models_app.command(
    "show",
    cls=Command,
    epilog=examples(
        """
fulmen models show minimax-m1-80k
fulmen models show minimax-m2 --lang de
fulmen models show m2-int4 --json
""",
        {
            "JSON of a model in the catalog": f"{_KEYS.strip()}; {_CARD_KEYS.strip()}",
            "JSON of a folder": _FOLDER_KEYS,
        },
    ),
)
def models_show(
    name: NameArgument,
    lang: Annotated[Literal["en", "de"], typer.Option(help="Language of the card.")] = "en",
    as_json: JsonOption = False,
    ignore_config_field: IgnoreInFileOption = None,
) -> None:
    """Show the facts about a model, or about a folder.

    A card says what the model is and how it was trained, and names licence, paper and authors.
    """
    from fulmen.catalog import get_card, record_of, render_card, text_of

    if Path(name).exists():
        _show_folder(Path(name), as_json, ignore_config_field or ())
        return
    card = get_card(name)
    if as_json:
        record = record_of(card)
        values = _card_values(card) | {"text": asdict(text_of(card, lang))}
        print_json(values | ({} if record is None else {"record": asdict(record)}))
    else:
        print(render_card(card, lang), end="")


def _show_folder(path: Path, as_json: bool, ignored: Sequence[str]) -> None:
    from fulmen.checkpoints import Checkpoint
    from fulmen.files import read_json

    checkpoint = Checkpoint.open(path, ignore_config_fields=ignored)
    table = quality = None
    if (path / "quality.json").exists():
        try:
            quality = read_json(path / "quality.json")
            table = quality_table(quality)
        except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
            quality = None
            print(
                f"{path / 'quality.json'} is not shown, fulmen quantize did not write it",
                file=sys.stderr,
            )
    values = _folder_values(path, checkpoint)
    if as_json:
        print_json(values | ({} if quality is None else {"quality": quality}))
        return
    total, active = values["total_parameters"], values["active_parameters"]
    print(f"{path}: {values['model_type']}, {values['num_layers']} layers")
    print(f"parameters  {total:,}, {active:,} of them for a token, with the head")
    print(f"weights     {values['bytes']:,} bytes, {values['weights']}")
    if table is not None:
        print_table(table)


def _folder_values(path: Path, checkpoint: "Checkpoint") -> dict[str, Any]:
    from fulmen.models import count_parameters

    config, counts = checkpoint.config, count_parameters(checkpoint.config)
    return {
        "path": str(path),
        "model_type": config.model_type,
        "num_layers": config.num_hidden_layers,
        "total_parameters": counts.total,
        "active_parameters": counts.active + (counts.head or counts.embedding),
        "bytes": checkpoint.num_bytes,
        "weights": checkpoint.describe_weights(),
    }


@models_app.command(
    "pull",
    cls=Command,
    epilog=examples("""
fulmen models pull smollm2
fulmen models pull MiniMaxAI/MiniMax-M2
"""),
)
def models_pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A name that fulmen models list shows, or a hub id.",
            autocompletion=completion.models,
        ),
    ],
) -> None:
    """Fetch a model and print its folder."""
    from fulmen.catalog import resolve
    from fulmen.cli.progress import byte_progress

    with byte_progress("fetching", name) as report:
        folder = resolve(name, on_progress=report)
    print(folder)


@models_app.command(
    "check",
    cls=Command,
    epilog=examples(
        "fulmen models check path/to/folder",
        {"JSON": "path, ok, num_tensors, problems, notes (both lists of sentences)"},
    ),
)
def models_check(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A checkpoint folder, a GGUF file, or the name of a model that comes with Fulmen.",
        ),
    ],
    as_json: JsonOption = False,
    ignore_config_field: IgnoreInFileOption = None,
) -> None:
    """Compare a checkpoint's tensors with its config.

    No weights are loaded. The exit code is 1 if something is wrong.
    """
    from fulmen.catalog import find_card, package_folder
    from fulmen.checkpoints import Checkpoint

    card = None if path.exists() else find_card(str(path))
    path = (None if card is None else package_folder(card)) or path
    checkpoint = Checkpoint.open(path, ignore_config_fields=ignore_config_field or ())
    problems, notes = checkpoint.problems(), checkpoint.notes()
    if as_json:
        print_json(
            {
                "path": str(path),
                "ok": not problems,
                "num_tensors": checkpoint.num_tensors,
                "problems": list(map(str, problems)),
                "notes": list(map(str, notes)),
            }
        )
    else:
        for problem in problems:
            print(problem)
        for note in notes:
            print(f"note: {note}")
    if problems:
        raise typer.Exit(1)
    if not as_json:
        print(f"{path}: all {checkpoint.num_tensors} tensors are there and have the right shape")
