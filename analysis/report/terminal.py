"""Results in a terminal: findings and the rate–distortion plane first, everything else by name."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import xarray as xr
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pyrovae.analysis.findings import findings
from pyrovae.analysis.findings.best import best_settings
from pyrovae.analysis.findings.caveats import caveats
from pyrovae.analysis.findings.verdicts import UNFINISHED, Outcome
from pyrovae.analysis.report import tables
from pyrovae.store.results import Evaluation

#: A part of the results as it is printed: a table, or lines of text.
Part = Table | list[Text]
#: Width of lines that are not broken.
UNBROKEN = 1000
#: Width of a table's left border, and of what separates columns.
_BORDER, _BORDERS = 1, 3
_STYLES: dict[Outcome, str] = {
    "supported": "green",
    "contradicted": "red",
    "no meaningful difference": "cyan",
    "undecided": "yellow",
}


def summary(results: Evaluation) -> Iterator[Part]:
    """The findings that a study could test, a line each, and its rate–distortion plane."""
    found = findings(results)
    tested = [each for each in found if each.contrast.note in ("", UNFINISHED)]
    width = max((len(each.outcome) for each in tested), default=0)
    lines = [Text.assemble((f"{each.outcome:{width}}", _STYLES[each.outcome]), f"  {each.summary}") for each in tested]
    if untested := len(found) - len(tested):
        lines += _lines([f"{untested} more could not be tested: 'pyrovae show {results.folder} findings' says why"])
    yield (lines or _lines(str(found).splitlines())) + _lines(tables.joint(found))
    if (plane := tables.plane(results.tree)) is not None:
        yield plane


def everything(results: Evaluation, tree: xr.DataTree | None = None) -> Mapping[str, Part]:
    """All that a study or a later evaluation found, by name: findings, a table for each group of numbers, and caveats.

    Args:
        tree: the numbers of the tables, if they are not those of the results.
    """
    numbers = tables.measured(results.tree if tree is None else tree)
    verdicts = tables.verdicts(findings(results))
    if "only" in results.tree.attrs:
        return {"findings": _lines(verdicts), **numbers}
    answers = map(str, chain.from_iterable(best_settings(results)))
    return {
        "findings": _lines(verdicts),
        "best": _lines(answers),
        **numbers,
        "caveats": _lines(caveats(results.tree)),
    }


def show(parts: Iterable[Part]) -> None:
    """Prints parts of the results, as wide as the terminal or in whole lines, so that no word or number is broken."""
    to = Console(highlight=False, markup=False)
    if not to.is_terminal:
        to.width = UNBROKEN
    for part in parts:
        if isinstance(part, Table):
            for table in fitting(part, to.width):
                to.print(table)
        else:
            for line in part:
                to.print(_wrapped(line, to.width), soft_wrap=True)


def fitting(table: Table, width: int) -> Iterator[Table]:
    """A table in as many as it takes for each to fit a width; left-justified columns name rows, and are in all of them.

    Example:
        >>> numbers = tables.with_columns("", ["β", "D train", "D test"], [["0.1", "21.3 ± 0.2", "23.4 ± 0.3"]], keys=1)
        >>> [len(each.columns) for width in (80, 30) for each in fitting(numbers, width)]
        [3, 2, 2]
    """
    if Console(width=UNBROKEN).measure(table).maximum <= width:
        yield table
        return
    keys = [column for column in table.columns if column.justify == "left"]
    taken: list[Column] = []
    for column in table.columns[len(keys) :]:
        if taken and _BORDER + sum(_BORDERS + _width(each) for each in [*keys, *taken, column]) > width:
            yield _part(table, [*keys, *taken])
            taken = []
        taken.append(column)
    yield _part(table, [*keys, *taken])


def _lines(texts: Iterable[str]) -> list[Text]:
    return list(map(Text, texts))


def _width(column: Column) -> int:
    """Width at which no number and no word of a column is broken."""
    unbroken = (str(cell).split() if column.justify == "left" else [str(cell)] for cell in column.cells)
    return max(map(cell_len, [*str(column.header).split(), *chain.from_iterable(unbroken)]))


def _part(table: Table, columns: list[Column]) -> Table:
    """A table of some columns of another, those with numbers as narrow as possible."""
    part = Table(title=table.title)
    for column in columns:
        width = _width(column)
        part.add_column(
            column.header,
            justify=column.justify,
            min_width=width,
            max_width=width if column.justify == "right" else None,
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        part.add_row(*row)
    return part


def _wrapped(line: Text, width: int) -> Text:
    """A line broken between words, with its style; further lines are indented."""
    wrapped = textwrap.fill(line.plain, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return Text(wrapped, spans=line.spans)
