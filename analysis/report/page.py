"""The report of a study, or of several side by side: one HTML file that holds all that it shows."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from PIL import Image
from rich.table import Table

from pyrovae.analysis import figures
from pyrovae.analysis.figures.style import COLOURS
from pyrovae.analysis.findings.caveats import caveats
from pyrovae.analysis.findings.claims import claims
from pyrovae.analysis.report import tables
from pyrovae.analysis.report.all_runs import NUMBERS, AllRuns, all_runs, study_of, written
from pyrovae.analysis.report.comparison import differences, joined, not_comparable
from pyrovae.analysis.report.references import bibtex
from pyrovae.study.grid import Measure, Study
from pyrovae.system import atomic

#: Most runs whose reconstructions are shown, so that the file stays within some tens of megabytes.
PICTURED = 500
#: The shapes of points, as in the other figures.
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")
#: Grid lines that show on white and on black.
_FAINT = "rgba(128, 128, 128, 0.3)"
_CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}


@dataclass(frozen=True)
class Part:
    """What a report says of one study, or of one later measurement of it."""

    heading: str
    description: str
    claims: Sequence[tuple[str, str, str, str]]
    caveats: list[str]
    tables: list["Sheet"]


@dataclass(frozen=True)
class Sheet:
    """A table as the page has it: its cells are text, and it can be sorted."""

    title: str
    headings: list[str]
    rows: list[list[str]]

    @classmethod
    def of(cls, table: Table) -> "Sheet":
        columns = [[str(cell) for cell in column.cells] for column in table.columns]
        rows = [list(row) for row in zip(*columns, strict=True)]
        return cls(str(table.title or ""), [str(column.header) for column in table.columns], rows)


def save(trees: Mapping[str, xr.DataTree], drawn: Sequence[Path], file: Path) -> None:
    """Writes the page to a file."""
    atomic.write(file, page(trees, drawn).encode())


def page(trees: Mapping[str, xr.DataTree], drawn: Sequence[Path]) -> str:
    """The report of some studies as one HTML page, which needs no other file and no network.

    Args:
        trees: the results of each, by what to call them.
        drawn: files of figures to show, as `figures.save` gives them; those that are PNG are shown.
    """
    one = len(trees) == 1
    studies = {name: study_of(tree) for name, tree in trees.items()}
    runs = all_runs(trees)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    template = resources.files("pyrovae.analysis.report") / "report.html"
    captions = figures.captions()
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        title=" and ".join(trees),
        version=metadata.version("pyrovae"),
        studies=studies,
        set_up=_set_up(*studies.values()) if one else Sheet.of(differences(trees)),
        caution="" if one else not_comparable(trees),
        plane=_plane(runs).to_html(full_html=False, include_plotlyjs=True, div_id="plane", config=_CONFIG),
        axes={axis: _values(runs.frame[axis]) for axis in runs.varied},
        all_runs=_sheet(runs),
        together=[] if one else [Sheet.of(table) for table in tables.measured(joined(trees))],
        facts=_facts(runs, trees),
        pictured=PICTURED if len(runs.frame) > PICTURED else 0,
        parts=[part for name, tree in trees.items() for part in _parts(tree, "" if one else name)],
        figures=[
            (file.stem.replace("_", " "), captions[file.stem], _data_uri(file.read_bytes()))
            for file in drawn
            if file.suffix == ".png"
        ],
        provenance=[(name, [Sheet.of(table) for table in tables.provenance(tree)]) for name, tree in trees.items()],
        bibtex=bibtex(studies.values(), annealed=any(map(_is_annealed, trees.values()))),
    )


def _plane(runs: AllRuns) -> go.Figure:
    """Rate and distortion of every run: a curve over β for each seed, train open and dashed, test filled and solid.

    Points carry the row of their run. The last trace is the ring around the run that is pointed at.
    """
    figure = go.Figure()
    held = [axis for axis in runs.varied if axis not in ("beta", "seed")]
    curves = list(runs.frame.groupby(held, sort=False, dropna=False)) if held else [((), runs.frame)]
    for (values, curve), colour, symbol in zip(curves, cycle(COLOURS), cycle(_SYMBOLS), strict=False):
        name = ", ".join(f"{axis} {written(value)}" for axis, value in zip(held, values, strict=True))
        for number, (_, cell) in enumerate(curve.sort_values("beta").groupby("seed", sort=False)):
            symbols = ["star" if beta == 1 else symbol for beta in cell["beta"]]
            places = [", ".join(f"{axis} {written(run[axis])}" for axis in runs.varied) for _, run in cell.iterrows()]
            for split, dash, ending in (("train", "dash", "-open"), ("test", "solid", "")):
                figure.add_scatter(
                    x=cell[f"R {split}"].tolist(),
                    y=cell[f"D {split}"].tolist(),
                    customdata=cell.index.tolist(),
                    text=places,
                    mode="lines+markers",
                    line={"color": colour, "width": 1, "dash": dash},
                    marker={"size": 8, "color": colour, "symbol": [each + ending for each in symbols]},
                    name=f"{name} {split}".strip(),
                    legendgroup=f"{name} {split}",
                    showlegend=number == 0,
                    hovertemplate=f"%{{text}}<br>{split}: R %{{x:.2f}}, D %{{y:.2f}}<extra></extra>",
                )
    ring = {"size": 18, "symbol": "circle-open", "color": "rgb(128, 128, 128)", "line": {"width": 2}}
    figure.add_scatter(x=[], y=[], mode="markers", marker=ring, hoverinfo="skip", showlegend=False, name="pointed at")
    axis = {"gridcolor": _FAINT, "linecolor": _FAINT, "zeroline": False}
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        xaxis={"title": "rate R (nats per image)", **axis},
        yaxis={"title": "distortion D (nats per image)", **axis},
        margin={"l": 60, "r": 10, "t": 10, "b": 50},
        height=520,
        hovermode="closest",
        legend={"orientation": "h", "y": -0.15, "yanchor": "top"},
    )
    return figure


def _sheet(runs: AllRuns) -> Sheet:
    """All runs as a table, a row each."""
    headings = [*runs.varied, *NUMBERS, "status"]
    rows = [
        [*(written(run[axis]) for axis in runs.varied), *(_number(run, name) for name in NUMBERS), str(run["status"])]
        for _, run in runs.frame.iterrows()
    ]
    title = f"all runs, nats per image; {tables.LOOSE} k̂ is high, so that the bound may be loose by far"
    return Sheet(title, headings, rows)


def _facts(runs: AllRuns, trees: Mapping[str, xr.DataTree]) -> list[dict[str, Any]]:
    """Of every run: where it stands, its numbers, and its reconstructions where there are not too many runs."""
    pictures = {
        study: tree["reconstructions"].to_dataset()[["original", "reconstruction"]].load()
        for study, tree in trees.items()
        if "reconstructions" in tree.children and len(runs.frame) <= PICTURED
    }
    return [
        {
            "place": {axis: written(run[axis]) for axis in runs.axes},
            "numbers": {name: _number(run, name) for name in NUMBERS},
            "picture": _picture(pictures[run["study"]], run) if run["study"] in pictures else "",
        }
        for _, run in runs.frame.iterrows()
    ]


def _values(axis: pd.Series) -> list[str]:
    """The values of an axis, numbers in their order."""
    return list(dict.fromkeys(map(written, axis if axis.dtype == object else axis.sort_values())))


def _number(run: pd.Series, name: str) -> str:
    if pd.isna(run[name]):
        return "–"
    return f"{run[name]:.2f}{tables.LOOSE if name == NUMBERS[-1] and run['loose'] else ''}"


def _picture(pictures: xr.Dataset, run: pd.Series) -> str:
    """Test images above their reconstructions, as a data URI; empty where they have neither one colour nor three."""
    cell = pictures.sel({axis: run[axis] for axis in pictures.indexes})
    rows = [
        np.concatenate(list(cell[name].transpose("sample", "row", "column", "channel").values), axis=1)
        for name in ("original", "reconstruction")
    ]
    both = np.concatenate(rows)
    if both.shape[-1] not in (1, 3):
        return ""
    buffer = BytesIO()
    Image.fromarray(both.squeeze(-1) if both.shape[-1] == 1 else both).save(buffer, format="png", optimize=True)
    return _data_uri(buffer.getvalue())


def _parts(tree: xr.DataTree, name: str) -> Iterator[Part]:
    """What is said of a study, and of each of its later measurements."""
    yield _part(tree, name, "")
    for child in tables.later(tree):
        again = tree.children[child]
        measure, before = Measure.model_validate_json(again.attrs["measure"]), study_of(tree).measure
        changed = [f"{key} {value}" for key, value in measure if value != getattr(before, key)]
        told = [f"with {', '.join(changed)}"] if changed else []
        told += [f"with {again.attrs['prior']} in the place of each run's own prior"] if "prior" in again.attrs else []
        yield _part(again, f"{name} {child}".strip(), f"measured again {', '.join(told)}")


def _part(tree: xr.DataTree, heading: str, description: str) -> Part:
    found = [(claim.verdict, claim.text, claim.where, tables.effect(claim)) for claim in claims(tree)]
    shown = [*tables.measured(tree), tables.difficulty(tree)]
    return Part(heading, description, found, caveats(tree), [Sheet.of(table) for table in shown])


def _set_up(study: Study) -> Sheet:
    """The settings of a study: its axes, then the others that are set."""
    settings = study.settings()
    others = [key for key in type(study.base).model_fields if key not in study.axes and settings[key] is not None]
    rows = [["study", study.name], *([key, ", ".join(map(written, values))] for key, values in study.axes.items())]
    return Sheet("", ["setting", "value"], rows + [[key, written(settings[key])] for key in others])


def _is_annealed(tree: xr.DataTree) -> bool:
    measurements = [tree, *(tree.children[child] for child in tables.later(tree))]
    return any(bool(each["likelihood"]["annealed_log_likelihood"].notnull().any()) for each in measurements)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
