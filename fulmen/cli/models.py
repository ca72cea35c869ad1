"""fulmen models: the models of the catalog and checkpoints, listed, shown, fetched, checked."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fulmen.cli.options import IgnoreOption, print_table
from fulmen.cli.quantize import quality_table

models_app = typer.Typer(help="List, show, fetch and check models.", no_args_is_help=True)


@models_app.command("list")
def models_list() -> None:
    """List the models of the catalog."""
    from rich.table import Table

    from fulmen.catalog import list_cards, published_config
    from fulmen.models import count_parameters

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "total", "active", "context"):
        table.add_column(column, justify="left" if column == "name" else "right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    table.add_column("title", no_wrap=True)
    for card in list_cards():
        counts = count_parameters(published_config(card.name))
        total, active = (f"{count / 1e9:.2f} B" for count in (counts.total, counts.active))
        table.add_row(card.name, total, active, f"{card.context:,}", card.licence, card.title)
    print_table(table)


@models_app.command("show")
def models_show(
    name: Annotated[
        str, typer.Argument(help="A catalog name, such as minimax-m1-80k, or a folder.")
    ],
    lang: Annotated[Literal["en", "de"], typer.Option(help="Language of the card.")] = "en",
) -> None:
    """Show a model's card, or the contents of a folder.

    A card says what the model is and how it was trained, and names licence, paper and authors.
    """
    from fulmen.catalog import get_card, render_card

    if Path(name).exists():
        _show_folder(Path(name))
        return
    print(render_card(get_card(name), lang), end="")


def _show_folder(path: Path) -> None:
    from fulmen.checkpoints import Checkpoint
    from fulmen.files import read_json
    from fulmen.models import count_parameters

    checkpoint = Checkpoint.open(path)
    counts, config = count_parameters(checkpoint.config), checkpoint.config
    active = counts.active + (counts.head or counts.embedding)
    print(f"{path}: {config.model_type}, {config.num_hidden_layers} layers")
    print(f"parameters  {counts.total:,}, {active:,} of them for a token, with the head")
    print(f"weights     {checkpoint.num_bytes:,} bytes, {checkpoint.describe_weights()}")
    quality = path / "quality.json"
    if not quality.exists():
        return
    try:
        table = quality_table(read_json(quality))
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        print(f"{quality} is not shown, fulmen quantize did not write it", file=sys.stderr)
        return
    print_table(table)


@models_app.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="A catalog name or a hub id.")],
) -> None:
    """Fetch a model and print its folder."""
    from fulmen.catalog import resolve
    from fulmen.cli.progress import byte_progress

    with byte_progress("fetching", name) as report:
        folder = resolve(name, on_progress=report)
    print(folder)


@models_app.command("check")
def models_check(
    path: Annotated[Path, typer.Argument(help="A checkpoint folder or a GGUF file.")],
    ignore_config_field: IgnoreOption = None,
) -> None:
    """Compare a checkpoint's tensors with its config.

    No weights are loaded.
    """
    from fulmen.checkpoints import Checkpoint

    checkpoint = Checkpoint.open(path, ignore_config_fields=ignore_config_field or ())
    problems = checkpoint.problems()
    for problem in problems:
        print(problem)
    for note in checkpoint.notes():
        print(f"note: {note}")
    if problems:
        raise typer.Exit(1)
    print(f"{path}: all {checkpoint.num_tensors} tensors are there and have the right shape")
