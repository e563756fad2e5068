"""The report of one study or of several: a single HTML file that needs no other file and no network."""

import base64
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
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
from pyrovae.analysis.figures.colours import COLOURS
from pyrovae.analysis.figures.plane import far_rate
from pyrovae.analysis.findings import findings
from pyrovae.analysis.findings.caveats import caveats
from pyrovae.analysis.findings.statistics import REPEATED
from pyrovae.analysis.report import tables
from pyrovae.analysis.report.all_runs import AllRuns, all_runs, study_of
from pyrovae.analysis.report.columns import columns, written
from pyrovae.analysis.report.comparison import cautions, differences, joined
from pyrovae.analysis.report.export import csv
from pyrovae.analysis.report.provenance import provenance
from pyrovae.analysis.report.references import bibtex
from pyrovae.measures import Quantity
from pyrovae.store import schema
from pyrovae.store.results import Evaluation, Results
from pyrovae.study import Study
from pyrovae.system import atomic

#: Most runs whose reconstructions are shown, to limit the size of the file.
PICTURED = 500
#: The shapes of points, as in the other figures.
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")
#: Line style of each split, and the ending of its symbols.
_LOOKS = {"train": ("dash", "-open"), "validation": ("dot", "-open"), "test": ("solid", "")}
#: Grid lines that are visible on white and on black.
_FAINT = "rgba(128, 128, 128, 0.3)"
_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "sendChartToCloud"],
    "plotlyServerURL": "",
}


@dataclass(frozen=True)
class Part:
    """Findings, caveats and tables of one study, or of a later evaluation of it."""

    heading: str
    description: str
    verdicts: Sequence[tuple[str, str, str, str]]
    caveats: list[str]
    tables: list["Sheet"]


@dataclass(frozen=True)
class Sheet:
    """A table of the page, with cells of text."""

    title: str
    headings: list[str]
    rows: list[list[str]]

    @classmethod
    def of(cls, table: Table) -> "Sheet":
        columns = [[str(cell) for cell in column.cells] for column in table.columns]
        rows = [list(row) for row in zip(*columns, strict=True)]
        return cls(str(table.title or ""), [str(column.header) for column in table.columns], rows)


def save(results: Mapping[str, Results], drawn: Sequence[Path], dark: Mapping[str, bytes], file: Path) -> None:
    """Writes the page to a file."""
    atomic.write(file, page(results, drawn, dark).encode())


def page(results: Mapping[str, Results], drawn: Sequence[Path], dark: Mapping[str, bytes]) -> str:
    """The report of some studies as one HTML page.

    Args:
        results: of each study, by its label.
        drawn: files of figures, as `figures.save` returns them; PNG files are shown.
        dark: the same figures for a dark screen, as `figures.dark_pictures` returns them.
    """
    one = len(results) == 1
    trees = {name: each.tree for name, each in results.items()}
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
        cautions=[] if one else list(cautions(trees)),
        plane=_plane(runs).to_html(full_html=False, include_plotlyjs=True, div_id="plane", config=_CONFIG),
        axes={axis: _values(runs.frame[axis]) for axis in runs.varied},
        all_runs=_sheet(runs),
        together=[] if one else [Sheet.of(table) for table in tables.measured(joined(trees)).values()],
        csv=_data_uri(csv(trees).encode(), "text/csv"),
        facts=_facts(runs, results),
        glossary=_glossary(trees.values()),
        pictured=PICTURED if len(runs.frame) > PICTURED else 0,
        parts=[part for name, each in results.items() for part in _parts(each, "" if one else name)],
        figures=[
            (file.stem.replace("_", " "), captions[file.stem], _data_uri(file.read_bytes()), _data_uri(dark[file.stem]))
            for file in drawn
            if file.suffix == ".png"
        ],
        provenance=[(name, [Sheet.of(table) for table in provenance(tree)]) for name, tree in trees.items()],
        bibtex=bibtex(study for each in results.values() for study in _measured_studies(each)),
    )


def _plane(runs: AllRuns) -> go.Figure:
    """Rate and distortion of every run: a curve over β for each seed and training set.

    Train is open and dashed, validation open and dotted, test filled and solid. Points carry the row of their run. The
    last trace is the ring around the selected run.
    """
    figure = go.Figure()
    swept = [axis for axis in ("beta", "target_rate") if axis in runs.axes]
    held = [axis for axis in runs.varied if axis not in (*swept, *REPEATED)]
    curves = list(runs.frame.groupby(held, sort=False, dropna=False)) if held else [((), runs.frame)]
    for (values, curve), colour, symbol in zip(curves, cycle(COLOURS), cycle(_SYMBOLS), strict=False):
        name = ", ".join(f"{axis} {written(value)}" for axis, value in zip(held, values, strict=True))
        repeats = [axis for axis in REPEATED if axis in curve]
        for number, (_, cell) in enumerate(curve.sort_values(swept).groupby(repeats, sort=False)):
            symbols = ["star" if run.get("beta") == 1 else symbol for _, run in cell.iterrows()]
            places = [", ".join(f"{axis} {written(run[axis])}" for axis in runs.varied) for _, run in cell.iterrows()]
            for split, (dash, ending) in _LOOKS.items():
                if f"R {split}" not in cell:
                    continue
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
    figure.add_scatter(x=[], y=[], mode="markers", marker=ring, hoverinfo="skip", showlegend=False, name="selected")
    axis = {"gridcolor": _FAINT, "linecolor": _FAINT, "zeroline": False}
    far = far_rate(runs.frame[["R train", "R test"]])
    beyond = (
        {"title": f"rate R (nats per image); some are above {far:.0f}: double-click", "range": [0, far]} if far else {}
    )
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        xaxis={"title": "rate R (nats per image)", **axis, **beyond},
        yaxis={"title": "distortion D (nats per image)", **axis},
        margin={"l": 60, "r": 10, "t": 10, "b": 50},
        height=520,
        hovermode="closest",
        legend={"orientation": "h", "y": -0.15, "yanchor": "top"},
    )
    return figure


def _sheet(runs: AllRuns) -> Sheet:
    """All runs as a table, a row each."""
    headings = [*runs.varied, *(column.heading for column in runs.columns), "status"]
    rows = [
        [*(written(run[axis]) for axis in runs.varied), *runs.numbers(run).values(), str(run["status"])]
        for _, run in runs.frame.iterrows()
    ]
    return Sheet("; ".join(["all runs, nats per image unless stated otherwise", *runs.caveats]), headings, rows)


def _facts(runs: AllRuns, results: Mapping[str, Results]) -> list[dict[str, Any]]:
    """The coordinates and numbers of every run, and its reconstructions if there are not too many runs."""
    few = len(runs.frame) <= PICTURED
    return [
        {
            "place": {axis: written(run[axis]) for axis in runs.axes},
            "numbers": runs.numbers(run),
            "picture": _picture(results[run["study"]], run) if few else "",
        }
        for _, run in runs.frame.iterrows()
    ]


def _values(axis: pd.Series) -> list[str]:
    """The values of an axis, numbers in their order."""
    return list(dict.fromkeys(map(written, axis if axis.dtype == object else axis.sort_values())))


def _glossary(trees: Collection[xr.DataTree]) -> dict[str, str]:
    """What the columns of the tables mean, by heading."""
    declared = dict.fromkeys(each for tree in trees for each in schema.quantities(tree))
    splits = {split for tree in trees for split in study_of(tree).splits}
    return {column.heading: _meaning(column.quantity) for column in columns(declared, splits)}


def _meaning(quantity: Quantity) -> str:
    unit = "" if quantity.unit == "1" else f", in {quantity.unit}"
    kind = "" if quantity.kind in (None, "exact", "unbiased") else f" ({quantity.kind})"
    return f"{quantity.long_name}{unit}{kind}"


def _picture(results: Results, run: pd.Series) -> str:
    """Test images above their reconstructions, as a data URI; empty unless they have one or three channels."""
    cell = results.pictures("reconstructions", **{str(axis): run[axis] for axis in results.tree["runs"].dims})
    if not cell:
        return ""
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


def _parts(results: Results, name: str) -> Iterator[Part]:
    """The parts of a study and of each of its later evaluations."""
    yield _part(results, name, "")
    for evaluation in results.evaluations.values():
        yield _part(evaluation, f"{name} {evaluation.name}".strip(), _description(evaluation))


def _description(evaluation: Evaluation) -> str:
    """What a later evaluation changed."""
    measure, before, attributes = evaluation.measure, study_of(evaluation.tree).measure, evaluation.tree.attrs
    changed = [f"{key} {value}" for key, value in measure if value != getattr(before, key)]
    changes = [f"with {', '.join(changed)}"] if changed else []
    if "only" in attributes:
        changes.append(f"with the measures {', '.join(json.loads(attributes['only']))}")
    if "prior" in attributes:
        changes.append(f"with {attributes['prior']} in place of each run's own prior")
    if _is_outdated(evaluation):
        changes.append("on earlier weights: there are no numbers until 'pyrovae evaluate' is run again")
    return f"evaluated again {', '.join(changes)}".strip()


def _is_outdated(results: Evaluation) -> bool:
    """Whether a later evaluation has no numbers, because all runs have been trained further."""
    return bool(results.name) and bool((results.tree["runs"]["step"] < 0).all())


def _part(results: Evaluation, heading: str, description: str) -> Part:
    shown = [Sheet.of(table) for table in tables.measured(results.tree).values()]
    if "only" in results.tree.attrs or _is_outdated(results):
        return Part(heading, description, [], [], shown)
    found = [(each.outcome, each.text, each.contrast.where, each.words) for each in findings(results)]
    return Part(heading, description, found, caveats(results.tree), shown)


def _set_up(study: Study) -> Sheet:
    """The settings of a study: its axes, then the others that are set."""
    settings = study.settings()
    others = [key for key in study.base.model_dump() if key not in study.axes and settings[key] is not None]
    rows = [["study", study.name], *([key, ", ".join(map(written, values))] for key, values in study.axes.items())]
    return Sheet("", ["setting", "value"], rows + [[key, written(settings[key])] for key in others])


def _measured_studies(results: Results) -> Iterator[Study]:
    """A study, also with the measure settings of each later evaluation."""
    study = study_of(results.tree)
    yield study
    for evaluation in results.evaluations.values():
        yield study.model_copy(update={"measure": evaluation.measure})


def _data_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
