"""Rows of a file of questions: JSON objects, one a line, or the rows of a Parquet file.

Parquet needs pyarrow, which is not among what this package needs.
"""

import os
from pathlib import Path
from typing import Any, Final

from fulmen.files import parse_json, shorten

_PARQUET: Final = b"PAR1"


def read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a file, each with the place where it stands, for messages. Raises
    ValueError for a file that has none or is no such file."""
    if not os.path.isfile(path):
        raise ValueError(f"{shorten(path)} is no file, it must be one of JSON lines or of Parquet")
    with path.open("rb") as file:
        is_parquet = file.read(len(_PARQUET)) == _PARQUET
    rows = _parquet_rows(path) if is_parquet else _json_rows(path)
    if not rows:
        raise ValueError(f"{path} is empty, it must have a question a line")
    return rows


def _json_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_text("utf-8").encode().split(b"\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            rows.append((where, parse_json(line, where)))
    return rows


def _parquet_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        raise ValueError(
            f"{path} is a Parquet file, for which pyarrow must be installed (pip install pyarrow)"
        ) from None
    try:
        rows = read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no Parquet file that can be read: {reason}") from None
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]
