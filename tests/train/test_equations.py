"""Equations of the page on reinforcement learning: its lines are lines of the files it names."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs/training_rl.md"


def lines_of(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_page_quotes_lines_as_they_stand_in_the_files() -> None:
    text = PAGE.read_text(encoding="utf-8")
    _, start, rest = text.partition("## Every equation of the report")
    section = start + rest.partition("\n## ")[0]
    quoted = 0
    for said, block in re.findall(r"((?:(?!```).)*)```text\n(.*?)```", section, re.S):
        if paths := re.findall(r"`(fulmen/train/(?:\w+/)?\w+\.py)`", said):
            path = ROOT / paths[-1]
        wanted, known = block.strip().splitlines(), lines_of(path)
        places = [n for n, line in enumerate(known) if line == wanted[0]]
        assert any(known[n : n + len(wanted)] == wanted for n in places), f"{path}: {block}"
        quoted += 1
    assert quoted >= 10
    assert [f"Eq. {number}" for number in range(1, 8)] == re.findall(r"\*\*(Eq\. \d)\*\*", section)
