"""What a terminal shows: whole words and numbers, at any width."""

import pytest
from rich.console import Console
from rich.text import Text

from pyrovae.analysis.report import tables, terminal

HEADINGS = ["prior", "beta", "D train", "nearest training image, learned", "R test under q(z)", "effective draws"]
ROWS = [["standard_normal", "0.01", "22.10 ± 0.27", "3.68 ± 0.07", "668.33 ± 69.26", "4.6"], ["vamp", "1", *"–" * 4]]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_break_no_word_and_no_number(width: int) -> None:
    table = tables.with_columns("a title that is much longer than a narrow terminal is wide", HEADINGS, ROWS, keys=2)
    parts = list(terminal.fitting(table, width))
    console = Console(width=width)
    with console.capture() as capture:
        console.print(*parts)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in line.replace("│", " ").replace("┃", " ").split()}
    assert {word for text in [*HEADINGS, *ROWS[0]] for word in text.split()} <= words
    for cell in ROWS[0][2:]:
        assert any(f" {cell} " in line for line in lines)
    assert [column.header for part in parts for column in part.columns[2:]] == HEADINGS[2:]
    assert all([column.header for column in part.columns[:2]] == HEADINGS[:2] for part in parts)


def test_long_lines_are_broken_between_words_and_keep_their_colour() -> None:
    line = Text.assemble(("supported", "green"), "  depth 1, β 1 → 0.01: test distortion falls by 6.58 ± 0.45 nats")
    first, second = terminal._wrapped(line, 60).plain.split("\n")
    assert (first.split() + second.split()) == line.plain.split()
    assert second.startswith("    ")
    assert terminal._wrapped(line, 60).spans == line.spans
