"""The report of a small study: what it shows equals the results, and it needs no other file."""

import base64
import html
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from helpers import one_figure

from pyrovae import Results, Study, parts, run
from pyrovae.analysis.findings import findings
from pyrovae.analysis.findings.caveats import caveats
from pyrovae.analysis.report import page, references, tables
from pyrovae.analysis.report.export import csv
from pyrovae.analysis.report.provenance import provenance
from pyrovae.measures.likelihood import is_loose
from pyrovae.runner.remeasure import reevaluate
from pyrovae.store import schema
from pyrovae.study import KINDS

SMALL = {
    "steps": 8,
    "learning_rate_schedule": "constant",
    "width": 8,
    "train_images": 64,
    "test_images": 64,
    "batch_size": 16,
}
EVIL = "</script><script>alert('1')</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    study = Study.load("quick", **SMALL, beta=[0.1, 1], seed=[0, 1], description=EVIL)
    folder = tmp_path_factory.mktemp("report") / "mine"
    with one_figure():
        run(study, out=folder, quiet=True)
        return reevaluate(folder, prior="mixture", particles=30)[0]


@pytest.fixture(scope="module")
def text(results: Results) -> str:
    return (results.folder / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """The addresses that a page loads, its tags, and the text of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.tags: list[str] = []
        self.cells: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "li", "p", "caption"):
            self.cells.append(" ".join(data.split()))


def facts_of(text: str) -> list[dict[str, dict[str, str]]]:
    (facts,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', text, re.DOTALL)
    return json.loads(facts)  # type: ignore[no-any-return]


def test_page_loads_nothing_outside_itself(text: str) -> None:
    asked = Page(text).asked
    assert any(each.startswith("data:image/png;base64,") for each in asked)
    assert all(each.startswith(("data:", "#")) for each in asked)


def test_text_of_a_study_is_escaped(text: str) -> None:
    page = Page(text)
    assert EVIL in page.cells
    assert page.tags.count("img") + page.tags.count("source") == len(
        [each for each in page.asked if each.startswith("data:image/png")]
    )


@pytest.mark.long
def test_name_of_a_folder_is_escaped(results: Results) -> None:
    plain, evil = (Page(page.page({"a": results, name: results}, [], {})) for name in ("b", EVIL))
    assert evil.tags == plain.tags


def test_numbers_of_a_run_equal_the_results(results: Results, text: str) -> None:
    tree, seen = results.tree, set()
    loose = is_loose(tree["likelihood"].to_dataset())
    assert loose.any()
    for fact in facts_of(text):
        place = {"beta": float(fact["place"]["beta"]), **{key: int(fact["place"][key]) for key in ("seed", "depth")}}
        seen.add(tuple(place.values()))
        assert fact["place"]["prior"] == "standard_normal"
        cell = tree["rate_distortion"].to_dataset().sel(place)
        codes = tree["information"].to_dataset().sel(place)
        expected = {
            f"{symbol} {split}": cell[name].sel(split=split)
            for symbol, name in (("D", "distortion"), ("R", "rate"))
            for split in ("train", "test")
        }
        same = tree["likelihood/elbo_same_images"].sel(place)
        expected |= {"ELBO, same images": same, "G": codes["prior_gap"]}
        for heading, value in expected.items():
            assert abs(float(fact["numbers"][heading].removesuffix("‡")) - float(value)) < 0.00501
        assert abs(float(fact["numbers"]["I"].removesuffix("*")) - float(codes["mutual_information"])) < 0.00501
        bound = fact["numbers"]["log p(x) ≥"]
        assert bound.endswith("†‡" if loose.sel(place) else "‡")  # grey pixels
        assert abs(float(bound.rstrip("†‡")) - float(tree["likelihood/log_likelihood"].sel(place))) < 0.00501
        assert tree["likelihood/log_likelihood"].sel(place) >= same
        assert str(fact["picture"]).startswith("data:image/png")
    assert len(seen) == 8


def test_findings_caveats_and_tables_are_shown(results: Results, text: str) -> None:
    cells = Page(text).cells
    assert list(results.evaluations) == ["particles=30", "prior=mixture,particles=30"]
    for each in (results, *results.evaluations.values()):
        assert all(verdict.text in cells and verdict.words in cells for verdict in findings(each))
        assert caveats(each.tree)
        assert set(caveats(each.tree)) <= set(cells)
        for table in tables.measured(each.tree).values():
            assert {str(cell) for column in table.columns for cell in column.cells} <= set(cells)
    assert any("mixture in place of each run's own prior" in cell for cell in cells)


def test_report_offers_the_numbers_as_csv(results: Results, text: str) -> None:
    (content,) = re.findall(r'download="mine.csv" href="data:text/csv;base64,(.*?)"', text)
    assert base64.b64decode(content).decode() == csv({"mine": results.tree})


def test_parts_of_later_evaluations_have_their_names(results: Results, text: str) -> None:
    assert set(results.evaluations) <= {html.unescape(each) for each in re.findall("<h3>(.*?)</h3>", text)}


@pytest.mark.usefixtures("one_figure")
def test_outdated_evaluation_is_named_without_numbers(tmp_path: Path) -> None:
    study = Study.load("quick", **SMALL, beta=1, depth=1, seed=0)
    run(study, out=tmp_path / "mine", quiet=True)
    reevaluate(tmp_path / "mine", samples=2)
    run(study.replace(steps=16), out=tmp_path / "mine", quiet=True)
    cells = Page((tmp_path / "mine/report.html").read_text(encoding="utf-8")).cells
    assert [each for each in cells if each.startswith("evaluated again with samples 2, on earlier weights")]


def test_provenance_names_the_runs_that_trained_together(results: Results) -> None:
    for table in provenance(results.tree):
        cohorts, runs = (list(table.columns[number].cells) for number in (0, 1))
        assert cohorts == [cohort.key for cohort in results.study.cohorts()]
        assert runs == [f"beta 0.1, 1; seed 0, 1; depth {depth}" for depth in (1, 3)]


def test_references_are_those_of_the_components_used() -> None:
    plain = Study.load("quick")
    both = plain.replace(prior=["vamp", "flow"], warmup=0.5)
    keys = {
        name: set(re.findall(r"^@\w+\{(.*),$", references.bibtex([study]), re.MULTILINE))
        for name, study in (
            ("plain", plain),
            ("both", both),
            ("annealed", plain.replace(**{"measure.temperatures": 5})),
        )
    }
    assert {"bozkurt2021rate", "bingham2019pyro"} <= keys["plain"]
    assert keys["both"] - keys["plain"] == {"tomczak2018vampprior", "durkan2019neural", "bowman2016generating"}
    assert keys["annealed"] - keys["plain"] == {
        "neal2001annealed",
        "wu2017quantitative",
        "grosse2015sandwiching",
    }
    assert "usedby" not in references.bibtex([both])


def used_by() -> Iterator[str]:
    for entry in references.entries():
        (uses,) = re.findall(r"^  usedby = \{(.*)\},$", entry, re.MULTILINE)
        yield from uses.split(", ")


def test_every_reference_names_an_existing_component() -> None:
    assert len(references.entries()) == len(
        re.findall(r"^@", (Path(references.__file__).parent / "references.bib").read_text(), re.MULTILINE)
    )
    for use in used_by():
        setting, equals, name = use.partition("=")
        if equals:
            assert setting in KINDS
            assert name in parts.names(setting), use
        else:
            assert use in ("all", "annealing", "warmup", "cycles")


def test_every_external_data_set_is_cited() -> None:
    uncited = {f"data={name}" for name in ("breast_cancer", "digits", "tetrominoes", "wine")}
    assert {f"data={name}" for name in parts.names("data")} - set(used_by()) == uncited


def test_large_reports_have_no_pictures(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PICTURED", 7)
    shown = page.page({"mine": results}, [], {})
    assert not any(fact["picture"] for fact in facts_of(shown))
    assert "Reconstructions are shown only in reports of up to 7 runs" in " ".join(shown.split())


def test_training_whose_loss_still_falls_has_not_converged(results: Results) -> None:
    tree = results.tree.copy(deep=True)
    steps = tree["curves"].step.values.astype(float)
    early = xr.DataArray(np.where(steps <= steps[-1] / 2, 100 - 100 * steps / steps[-1], 50), dims="step")
    tree["curves/loss"][:] = early.broadcast_like(tree["curves/loss"])
    assert not [line for line in caveats(tree) if "converged" in line]
    late = xr.DataArray(100 - 100 * steps / steps[-1], dims="step")
    tree["curves/loss"].loc[{"seed": 1}] = late.broadcast_like(tree["curves/loss"].sel(seed=1))
    (line,) = [line for line in caveats(tree) if "converged" in line]
    assert steps[0] == 1
    assert steps[-1] == 8
    assert line.startswith(f"4 of 8 runs had not converged: up to {2 / 7:.1%} of the total decrease of the")


def test_distortion_that_rises_again_is_a_caveat(results: Results) -> None:
    """Where it rises by more than the margin, and where the last step is measured."""
    tree = results.tree.copy(deep=True)
    tree["curves/distortion"][:] = 100
    assert not any("earlier step" in line for line in caveats(tree))
    tree["curves/distortion"].loc[{"split": "test", "step": 8, "seed": 0}] = 130
    tree["curves/distortion"].loc[{"split": "test", "step": 8, "seed": 1}] = 100.5
    (line,) = [line for line in caveats(tree) if "earlier step" in line]
    assert line.startswith("the test distortion of 4 of 8 runs was lower at an earlier step, by up to 30.0 nats")
    tree.attrs["study"] = results.study.replace(validation_images=8, keep="best").to_yaml()
    assert not any("earlier step" in line for line in caveats(tree))


def test_densities_given_an_offset_are_labelled(results: Results) -> None:
    tree = results.tree.copy(deep=True)
    tree["runs/distortion_kind"][:] = "negative log-probability given the offset"
    assert [line for line in caveats(tree) if "log p(x | offset)" in line]
    assert any("D is given the offset" in str(table.title) for table in tables.measured(tree).values())


def test_report_shows_all_settings(text: str) -> None:
    settings = dict(re.findall(r"<div><dt>(\w+)</dt><dd>(.*?)</dd>", text))
    assert settings["steps"] == "8"
    assert settings["beta"] == "0.1, 1"
    assert settings.pop("study") == "quick"
    assert settings.keys() <= Study.load("quick").resolved().settings().keys()


@pytest.mark.parametrize("axis", ["seed", "data_seed"])
def test_errors_in_a_table_are_those_of_means_over_images_and_runs(axis: str) -> None:
    study = Study(name="mine", beta=1, train_images=64, **{axis: [0, 1, 2]}).resolved()
    tree = schema.empty(study)
    data = tree["rate_distortion"].to_dataset()
    places = xr.DataArray([0, 1, 2], dims=axis)
    for name, values in {"distortion": [10.0, 12.0, 17.0], "distortion_se": [0.6, 0.8, 1.0]}.items():
        data[name] = xr.zeros_like(data[name]) + xr.DataArray(values, {axis: places})
    tree["rate_distortion"] = xr.DataTree(data)
    (table,) = tables.measured(tree).values()
    assert [str(cell) for cell in table.columns[1].cells] == [f"13.00 ± {(0.8**2 + 13 / 3) ** 0.5:.2f}"]


def test_means_over_fewer_runs_than_others_are_marked() -> None:
    tree = schema.empty(Study(name="mine", beta=[0.1, 1], train_images=64, seed=[0, 1, 2]).resolved())
    data = tree["rate_distortion"].to_dataset()
    values = xr.DataArray([[10.0, 12.0, 17.0], [20.0, np.nan, 22.0]], {"beta": [0.1, 1], "seed": [0, 1, 2]})
    data["distortion"] = xr.zeros_like(data["distortion"]) + values
    for marked, chosen in {True: [0.1, 1], False: [0.1]}.items():
        tree["rate_distortion"] = xr.DataTree(data.where(data.beta.isin(chosen)))
        (table,) = tables.measured(tree).values()
        assert ("over n only where (n) stands" in str(table.title)) == marked
        assert [str(cell).endswith(" (2)") for cell in table.columns[1].cells] == [False, True][: len(chosen)]
