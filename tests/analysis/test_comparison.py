import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from helpers import InMemory
from rich.table import Table
from typer.testing import CliRunner

from pyrovae import Study, run
from pyrovae.analysis import figures
from pyrovae.analysis.report import page, tables
from pyrovae.analysis.report.comparison import Comparison, cautions, differences, joined
from pyrovae.cli import app
from pyrovae.errors import InputError
from pyrovae.runner.reporting import compare
from pyrovae.store import schema

TINY = {"steps": 2, "width": 8, "train_images": 64, "test_images": 64, "batch_size": 16}


def results_of(number: int, /, **settings: Any) -> xr.DataTree:
    """Results of a study with random numbers."""
    found = schema.empty(Study(name="mine", **settings))
    rng = np.random.default_rng(number)
    for group in ("rate_distortion", "information", "likelihood", "memorisation", "runs", "curves"):
        for name, values in found[group].data_vars.items():
            if values.dtype.kind == "f":
                found[group][name][:] = rng.uniform(1, 9, values.shape)
    return found


@pytest.fixture
def trees() -> dict[str, xr.DataTree]:
    return {
        "deep": results_of(0, beta=[0.1, 1], depth=[1, 3]),
        "priors": results_of(1, beta=[2, 1], prior=["vamp", "flow"], depth=3, seed=[0, 1], train_ratio=0.5),
        "ratios": results_of(2, beta=1, train_ratio=[0.1, 0.3], depth=3),
    }


def rows(table: Table) -> list[list[str]]:
    return [list(row) for row in zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)]


def test_joined_results_are_those_of_each_study(trees: dict[str, xr.DataTree]) -> None:
    cells = joined(trees)["rate_distortion"].to_dataset()
    number = 0
    for name, shared in (
        ("deep", {"prior": "standard_normal", "train_ratio": "–"}),
        ("priors", {"depth": 3, "train_ratio": "0.5"}),
        ("ratios", {"prior": "standard_normal", "depth": 3}),
    ):
        own = trees[name]["rate_distortion"].to_dataset()
        if "train_ratio" in own.dims:
            own = own.assign_coords(train_ratio=["0.1", "0.3"])
        place = {axis: own[axis].values for axis in own.dims}
        found = cells.sel(study=name, **shared).sel(place)
        xr.testing.assert_allclose(found.transpose(*own.dims).drop_vars(["study", *shared]), own)
        number += own["rate"].size
    assert int(cells["rate"].notnull().sum()) == number


def test_table_has_a_row_for_every_cell(trees: dict[str, xr.DataTree]) -> None:
    for table in tables.measured(joined(trees)).values():
        assert len(rows(table)) == 4 + 4 + 2
    shown = [row[0] for row in rows(next(iter(tables.measured(joined(trees)).values())))]
    assert [shown.count(name) for name in trees] == [4, 4, 2]


@pytest.mark.usefixtures("all_figures")
def test_plane_shows_the_curves_of_all_studies(trees: dict[str, xr.DataTree]) -> None:
    drawn = figures.drawn(Comparison(trees))
    assert set(drawn) >= {"rate_distortion", "distortion", "information", "saturation"}
    lines = {str(line.get_label()): line for line in drawn["rate_distortion"].axes[0].lines}
    own = trees["deep"]["rate_distortion"].to_dataset().sel(depth=3, split="test").mean("seed")
    line = lines["study deep, prior standard_normal, train_ratio –, depth 3 test"]
    np.testing.assert_allclose(line.get_xydata(), np.stack([own["rate"], own["distortion"]], axis=1)[[0, 1]])
    assert sum(label.startswith("study") and label.endswith("test") for label in lines) == 2 + 2 + 2


def test_differences_are_the_settings_that_differ(trees: dict[str, xr.DataTree]) -> None:
    found = {row[0]: row[1:] for row in rows(differences(trees))}
    assert found == {
        "train_ratio": ["–", "0.5", "0.1, 0.3"],
        "prior": ["standard_normal", "vamp, flow", "standard_normal"],
        "depth": ["1, 3", "3", "3"],
        "beta": ["0.1, 1", "2, 1", "1"],
        "seed": ["0", "0, 1", "0"],
    }
    (caution,) = cautions(trees)
    assert caution.endswith("the studies differ in train_ratio")
    assert list(cautions({"deep": trees["deep"], "other": results_of(3, beta=1, prior="vamp")})) == []
    some = results_of(4, train_ratio=[0.1, 0.5], split="cropped")
    assert list(cautions({"one": some, "two": some.copy()})) == []
    (caution,) = cautions({"one": some, "two": results_of(5, train_ratio=0.5, split=["cropped", "random"])})
    assert caution.startswith("compare only rows with the same split and train_ratio: ")
    trees["ratios"]["runs"]["versions"][:] = "pyrovae 9"
    assert ["versions", "", "", "pyrovae 9"] in rows(differences(trees))


@pytest.mark.parametrize(
    ("one", "other", "changed"),
    [
        ("pyrovae 0.1.0 (source aa), torch 2, mine (source cc)", "pyrovae 0.1.0 (source aa), torch 3", ""),
        ("pyrovae 0.1.0 (source aa), mine (source cc)", "pyrovae 0.1.0 (source aa), mine (source cc)", ""),
        ("pyrovae 0.1.0 (source aa)", "pyrovae 0.1.0 (source bb)", "the code of pyrovae changed"),
        ("pyrovae 1 (source aa), my.own (source c)", "pyrovae 1 (source aa), my.own (source d)", "of my.own changed"),
    ],
)
def test_comparison_warns_of_changed_code_alone(one: str, other: str, changed: str) -> None:
    trees = {"one": results_of(1, beta=1), "other": results_of(2, beta=1)}
    for tree, versions in zip(trees.values(), (one, other), strict=True):
        tree["runs"]["versions"][:] = versions
    found = list(cautions(trees))
    assert [changed in each for each in found] == [True] * bool(changed)


def test_cells_without_runs_have_no_kind_of_distortion(trees: dict[str, xr.DataTree]) -> None:
    for tree in trees.values():
        tree["runs"]["distortion_kind"][:] = "cross-entropy"
    titles = [str(table.title) for table in tables.measured(joined(trees)).values()]
    assert any("D is a cross-entropy" in title for title in titles)
    assert not any("in part" in title for title in titles)


def test_report_lists_every_run_with_its_study(trees: dict[str, xr.DataTree]) -> None:
    shown = page.page({name: InMemory(tree) for name, tree in trees.items()}, [], {})
    assert shown.count("data-run=") == 4 + 8 + 2
    assert all(f'data-axis="study" value="{name}"' in shown for name in trees)
    assert "the studies differ in train_ratio" in shown
    assert re.findall(r'data-axis="beta" value="(.*?)"', shown) == ["0.1", "1", "2"]


@pytest.mark.long
@pytest.mark.usefixtures("one_figure")
def test_compare_command_prints_tables_and_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for part, settings in (("a/quick", {"depth": 1}), ("b/quick", {"depth": [1, 3]})):
        run(Study.load("quick", **TINY, beta=[0.1, 1], seed=0, **settings), out=part, quiet=True)
    out, elsewhere = Path("runs/comparison"), tmp_path / "elsewhere"
    out.mkdir(parents=True)
    elsewhere.touch()
    for name in ("report.html", ".report.html.pyrovae.part"):
        (out / name).symlink_to(elsewhere)
    short, done = (
        CliRunner().invoke(app, ["compare", "a/quick", "b/quick", *all_of_it], catch_exceptions=False)
        for all_of_it in ([], ["--all"])
    )
    assert (short.exit_code, done.exit_code) == (0, 0)
    assert "R test" in short.output
    assert "active units" not in short.output
    assert " caveats and all tables: pyrovae compare a/quick b/quick --all" in short.output
    assert "active units" in done.output
    assert not elsewhere.read_bytes()  # links to other places are replaced
    assert not (out / "report.html").is_symlink()
    assert "differences between the studies" in done.output
    first_table = done.output.partition("└")[0]
    assert [cells[1].strip() for line in first_table.splitlines() if len(cells := line.split("│")) == 5] == ["depth"]
    assert "a/quick: " in done.output  # two folders of one name are distinguished by their paths
    assert "report in runs/comparison/report.html" in done.output
    assert {"rate_distortion.png", "report.html"} <= {file.name for file in out.iterdir()}


@pytest.mark.parametrize(
    ("folders", "out", "message"),
    [
        ([], "both", "expected the folders of at least two studies, got none"),
        (["one", "./one"], "both", "expected different folders, got one of them twice: one, ./one"),
        (["one", "nowhere"], "both", "nowhere: expected the folder of a study, but there is no such folder"),
        (["one", "two"], "two", "two: expected a folder for the comparison, got that of a study"),
    ],
)
def test_invalid_comparison_is_refused(
    folders: list[str], out: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Path(name).mkdir()
        (Path(name) / "study.yaml").write_text(Study(name=name).to_yaml())
    with pytest.raises(InputError, match=message):
        compare(folders, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
