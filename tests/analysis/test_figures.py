import os
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import xarray as xr
from helpers import InMemory
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from pyrovae import InputError, Study
from pyrovae.analysis import figures
from pyrovae.store.schema import empty as empty_results

BETAS = [0.001, 0.005, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 2.0, 3.0, 5.0]


@pytest.fixture
def tree() -> xr.DataTree:
    """Results similar to the paper's: curves of both depths close together, many β close to 1."""
    split, beta, seed, depth = np.ix_([0.0, 1.0], np.array(BETAS), [0.0, 1.0], [1.0, 3.0])
    values = {
        "rate": 60 - (12 - 2 * depth) * np.log(beta / 5) + seed - split,
        "distortion": 90 + (np.log(beta) + 7) ** 2 + depth * split + seed,
        "floor": 49 + 0 * (split + beta + seed + depth),
    }
    dims = ("split", "beta", "seed", "depth")
    coords = {"split": ["train", "test"], "beta": BETAS, "seed": [0, 1], "depth": [1, 3]}
    cells = xr.Dataset({name: (dims, value) for name, value in values.items()}, coords)
    codes = {
        "prior_gap": cells["rate"].sel(split="train", drop=True) - 8,
        "mutual_information": 8 + 0 * cells["rate"].sel(split="train", drop=True),
        "log_n": 8.3 + 0 * cells["rate"].sel(split="train", drop=True),
    }
    fine = xr.Dataset(
        {"rate": ("beta", [20.0, 10, 1]), "distortion": ("beta", [50.0, 60, 90])}, {"beta": [0.001, 0.1, 5]}
    )
    theory = fine.assign(mutual_information=fine["rate"], prior_gap=0 * fine["rate"])
    bound = -cells["rate"].sel(split="test", drop=True) - 90
    missing = np.nan * bound
    likelihood = {"log_likelihood": bound, "high_pareto_k": 0 * bound + 0.5, "annealed_log_likelihood": missing}
    groups = {"information": xr.Dataset(codes), "theory": theory, "likelihood": xr.Dataset(likelihood)}
    return xr.DataTree.from_dict({"rate_distortion": cells, **groups})


@pytest.fixture
def ax() -> Axes:
    return Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained").subplots()


#: A backend that makes matplotlib interactive when it is loaded, as that of notebooks.
BACKEND = """
import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg as FigureCanvas
matplotlib.interactive(True)
"""
PLOT = """
import matplotlib, numpy, xarray
from pyrovae.analysis import figures
from helpers import InMemory
figures.FIGURES = {"any": lambda results, ax: ax.plot([0, 1])}
figures.plot(InMemory(xarray.DataTree()), "any")
print(matplotlib.is_interactive())
"""


@pytest.mark.long
def test_first_figure_leaves_a_notebook_interactive(tmp_path: Path) -> None:
    """Otherwise, it would show no further ones."""
    (tmp_path / "notebook_backend.py").write_text(BACKEND, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1]), *sys.path])
    variables = {**os.environ, "MPLBACKEND": "module://notebook_backend", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", PLOT], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_labels_are_no_latex_even_for_a_user_of_latex(tree: xr.DataTree) -> None:
    with matplotlib.rc_context({"text.usetex": True}):
        figure: Any = figures.plot(InMemory(tree), "rate_distortion").figure
    assert not any(text.get_usetex() for text in figure.findobj(Text))
    pyplot.close(figure)


def test_plane_shows_the_results(tree: xr.DataTree, ax: Axes) -> None:
    figures.rate_distortion(InMemory(tree), ax)
    drawn = {str(line.get_label()): line.get_xydata() for line in ax.lines}
    cells = tree["/rate_distortion"].to_dataset().mean("seed")
    for depth, split in product([1, 3], ["train", "test"]):
        cell = cells.sel(depth=depth, split=split)
        expected = np.stack([cell["rate"], cell["distortion"]], axis=1)
        np.testing.assert_allclose(drawn[f"depth {depth} {split}"], expected)


def test_plane_is_readable_with_a_rate_far_above_the_others(tree: xr.DataTree, ax: Axes) -> None:
    far = {"beta": 0.1, "depth": 3, "split": "test"}
    tree["/rate_distortion"]["rate"].loc[far] = 300_000
    figures.rate_distortion(InMemory(tree), ax)
    others = tree["/rate_distortion"]["rate"].where(lambda rate: rate < 1_000)
    ends = ax.transData.transform([(others.min(), 0), (others.max(), 0)])
    left, right = ax.transAxes.inverted().transform(ends)[:, 0]
    assert "logarithmic above" in ax.get_xlabel()
    assert right - left > 0.2
    assert ax.get_xlim()[1] > 300_000


def test_labels_are_at_test_points_and_do_not_overlap(tree: xr.DataTree, ax: Axes) -> None:
    figures.rate_distortion(InMemory(tree), ax)
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    labels = [text for text in ax.texts if text.get_text()]
    assert sorted(label.get_text() for label in labels) == sorted(f"{beta:g}" for beta in BETAS * 2)
    cells = tree["/rate_distortion"].to_dataset().mean("seed")
    for label in labels:
        rate, distortion = label.xy  # type: ignore[attr-defined]
        here = cells.sel(split="test", beta=float(label.get_text()))
        assert np.isclose(here["rate"], rate).any()
        assert np.isclose(here["distortion"], distortion).any()
    boxes = [label.get_window_extent() for label in labels]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    markers = ax.transData.transform(np.concatenate([line.get_xydata() for line in ax.lines[:8]]))
    assert not any(box.contains(x, y) for box in boxes for x, y in markers)


def test_run_without_numbers_has_no_label(tree: xr.DataTree, ax: Axes) -> None:
    tree["/rate_distortion"]["rate"].loc[{"beta": 0.1, "depth": 3}] = np.nan
    figures.rate_distortion(InMemory(tree), ax)
    labels = [text.get_text() for text in ax.texts if text.get_text()]
    assert labels.count("0.1") == 1
    assert len(labels) == 2 * len(BETAS) - 1


def test_missing_floor_is_not_drawn(tree: xr.DataTree, ax: Axes) -> None:
    tree["/rate_distortion"]["floor"][:] = np.nan
    figures.rate_distortion(InMemory(tree), ax)
    assert "floor (test)" not in [line.get_label() for line in ax.lines]


def drawn_lines(ax: Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in ax.lines}


def test_distortion_is_drawn_against_beta(tree: xr.DataTree, ax: Axes) -> None:
    drawn = drawn_lines(figures.distortion(InMemory(tree), ax))
    cells = tree["rate_distortion"].to_dataset().mean("seed")
    for depth, split in product([1, 3], ["train", "test"]):
        expected = cells["distortion"].sel(depth=depth, split=split)
        np.testing.assert_allclose(drawn[f"depth {depth} {split}"], np.stack([BETAS, expected], axis=1))
    np.testing.assert_allclose(drawn["theory (population)"][:, 1], [50, 60, 90])


def test_information_figure_shows_rate_gap_information_and_log_n(tree: xr.DataTree, ax: Axes) -> None:
    drawn = drawn_lines(figures.information(InMemory(tree), ax))
    rate = tree["rate_distortion"]["rate"].sel(split="train").mean("seed")
    codes = tree["information"].to_dataset().mean("seed")
    for depth in (1, 3):
        for symbol, expected in (("R", rate), ("G", codes["prior_gap"]), ("I", codes["mutual_information"])):
            np.testing.assert_allclose(drawn[f"{symbol} depth {depth}"][:, 1], expected.sel(depth=depth))
    assert (drawn["log N = 8.30"][:, 1] == 8.3).all()


def test_theory_is_drawn_in_the_plane(tree: xr.DataTree, ax: Axes) -> None:
    drawn = drawn_lines(figures.rate_distortion(InMemory(tree), ax))
    np.testing.assert_allclose(drawn["theory (population)"], [[20, 50], [10, 60], [1, 90]])


def test_many_curves_have_distinct_looks_and_a_legend_below_them(tree: xr.DataTree, ax: Axes) -> None:
    widths = [16, 64, 256, 1024]
    many = [tree["rate_distortion"].to_dataset().assign(distortion=lambda d, w=w: d["distortion"] + w) for w in widths]
    cells = xr.concat(many, xr.Variable("width", widths))
    figures.rate_distortion(InMemory(xr.DataTree.from_dict({"/rate_distortion": cells})), ax)
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    looks = {
        str(line.get_label()): (line.get_color(), line.get_marker(), line.get_markerfacecolor())
        for line in ax.lines
        if "width" in str(line.get_label())
    }
    assert len(looks) == len(set(looks.values())) == 16
    (legend,) = ax.figure.legends
    assert legend.get_window_extent().y1 <= ax.xaxis.label.get_window_extent().y0
    assert ax.figure.bbox.containsx(legend.get_window_extent().x0)
    assert ax.figure.bbox.containsx(legend.get_window_extent().x1)


def test_each_distinct_floor_is_drawn(tree: xr.DataTree, ax: Axes) -> None:
    tree["/rate_distortion"]["floor"].loc[{"depth": 3}] = 30
    figures.rate_distortion(InMemory(tree), ax)
    assert sorted(line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":") == [30, 49]


def test_saturation_shows_information_against_rate(tree: xr.DataTree, ax: Axes) -> None:
    drawn = drawn_lines(figures.saturation(InMemory(tree), ax))
    rate = tree["rate_distortion"]["rate"].sel(split="train").mean("seed")
    for depth in (1, 3):
        np.testing.assert_allclose(drawn[f"depth {depth}"], np.stack([rate.sel(depth=depth), [8.0] * 12], axis=1))
    assert (drawn["log N = 8.30"][:, 1] == 8.3).all()
    assert (drawn["I = R"][:, 0] == drawn["I = R"][:, 1]).all()


def test_distortion_over_gap_shows_settings_with_saturated_information(tree: xr.DataTree, ax: Axes) -> None:
    """A setting whose I is below log N in one run is left out; labels are the values of β."""
    codes, distortion = tree["information"], tree["rate_distortion"]["distortion"].sel(split="test")
    codes["mutual_information"].loc[{"beta": BETAS[:5]}] = 8.25
    codes["mutual_information"].loc[{"beta": 0.01, "seed": 1, "depth": 3}] = 8.1
    drawn = drawn_lines(figures.distortion_over_gap(InMemory(tree), ax))
    for depth, betas in ((1, [0.3, 0.1, 0.01, 0.005, 0.001]), (3, [0.3, 0.1, 0.005, 0.001])):
        cells = [each.sel(depth=depth, beta=betas).mean("seed") for each in (codes["prior_gap"], distortion)]
        found = drawn[f"depth {depth}"]
        np.testing.assert_allclose(found[np.isfinite(found).all(1)][::-1], np.stack(cells, axis=1))
    labels = [text.get_text() for text in ax.texts if text.get_text()]
    assert sorted(labels) == ["0.001", "0.001", "0.005", "0.005", "0.01", "0.1", "0.1", "0.3", "0.3"]


def test_distortion_over_gap_follows_the_weight_of_the_gap(tree: xr.DataTree, ax: Axes) -> None:
    tree = xr.DataTree.from_dict({
        name: tree[name].to_dataset().sel(beta=[0.01, 0.1, 1]).rename(beta="gamma").expand_dims(beta=[0.5])
        for name in ("information", "rate_distortion")
    })  # fmt: skip
    tree["information"]["mutual_information"][:] = 8.3
    drawn = drawn_lines(figures.distortion_over_gap(InMemory(tree), ax))
    assert [len(drawn[f"depth {depth}"]) for depth in (1, 3)] == [3, 3]
    assert {text.get_text() for text in ax.texts} - {""} == {"0.01", "0.1", "1"}


@pytest.mark.parametrize("saturated", [0, 1])
def test_distortion_over_gap_needs_two_settings(saturated: int, tree: xr.DataTree, ax: Axes) -> None:
    tree["information"]["mutual_information"].loc[{"beta": BETAS[:saturated], "depth": 1}] = 8.3
    assert not figures.distortion_over_gap(InMemory(tree), ax).has_data()


def test_distortion_over_gap_of_one_beta_names_it(tree: xr.DataTree, ax: Axes) -> None:
    """Here, depths are compared at equal β."""
    tree["information"]["mutual_information"].loc[{"beta": 0.1}] = 8.3
    drawn = drawn_lines(figures.distortion_over_gap(InMemory(tree), ax))
    assert [np.isfinite(drawn[f"depth {depth}"]).all(1).sum() for depth in (1, 3)] == [1, 1]
    assert (ax.get_title(), len(ax.texts)) == ("β = 0.1", 0)


@pytest.fixture
def curves(tree: xr.DataTree) -> InMemory:
    """Learning curves without equal points, traversals, and values of k̂."""
    steps, rng = [0, 1, 10, 100], np.random.default_rng(0)
    coords = {"split": ["train", "test"], "step": steps, "beta": BETAS, "seed": [0, 1], "depth": [1, 3]}
    shape = [len(each) for each in coords.values()]
    learned = xr.Dataset({"distortion": (list(coords), rng.uniform(50, 300, shape))}, coords)
    grid = {name: coords[name] for name in ("beta", "seed", "depth")}
    dims = ["sample", "channel", "row", "column"]
    pixels = rng.integers(0, 256, (12, 2, 2, 3, 8, 1, 4, 4), dtype=np.uint8)
    numbers = ([*grid, "rank"], rng.uniform(0, 1, (12, 2, 2, 3)))
    along = xr.Dataset({"traversal": ([*grid, "rank", *dims], pixels), "latent": numbers, "share": numbers}, grid)
    k = rng.uniform(-1, 2, (2, 12, 2, 2, 30))
    k[1, 0, 0, 0, 0] = -np.inf
    images = xr.Dataset({"pareto_k": (["split", *grid, "image"], k)}, {"split": ["train", "test"], **grid})
    images["pareto_k"].attrs["threshold"] = 0.58
    tree["curves"] = xr.DataTree(learned)
    return InMemory(tree, images, {"traversals": along})


def test_learning_curves_have_panels_for_lowest_middle_and_highest_beta(curves: InMemory, ax: Axes) -> None:
    figures.learning_curves(curves, ax)
    panels = ax.figure.axes[1:]
    assert [panel.get_title() for panel in panels] == ["β = 0.001", "β = 1", "β = 5"]
    data = curves.tree["curves/distortion"].mean("seed")
    for panel, beta in zip(panels, (0.001, 1.0, 5.0), strict=True):
        drawn = drawn_lines(panel)
        for depth, split in product([1, 3], ["train", "test"]):
            expected = data.sel(depth=depth, split=split, beta=beta)
            np.testing.assert_allclose(drawn[f"depth {depth} {split}"], np.stack([data.step, expected], axis=1))
        assert {str(line.get_label()).split()[-1]: line.get_linestyle() for line in panel.lines} == {
            "train": "--",
            "test": "-",
        }


def test_axes_placed_by_hand_cannot_hold_panels(curves: InMemory) -> None:
    with pytest.raises(ValueError, match="expected axes that subplots"):
        figures.learning_curves(curves, Figure().add_axes((0, 0, 1, 1)))


def test_figure_within_a_larger_one_keeps_its_size(curves: InMemory) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    figures.rate_distortion(curves, left)
    figures.traversals(curves, right)
    assert figure.get_size_inches().tolist() == [9, 4]


def test_pareto_k_shows_quantiles_over_images_and_seeds(curves: InMemory, ax: Axes) -> None:
    figures.pareto_k(curves, ax)
    pooled = curves.images()["pareto_k"].sel(split="test").clip(min=-0.5)
    bars = {str(each.get_label()): each for each in ax.containers}
    for depth in (1, 3):
        quantiles = pooled.sel(depth=depth).stack(each=("seed", "image")).quantile([0.1, 0.5, 0.9], "each")
        middle, _, (segments,) = bars[f"depth {depth}"].lines  # type: ignore[attr-defined]
        np.testing.assert_allclose(middle.get_ydata(), quantiles[1])
        ends = np.array([segment[:, 1] for segment in segments.get_segments()])
        np.testing.assert_allclose(ends, quantiles.isel(quantile=[0, 2]).transpose("beta", "quantile"))
    (line,) = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert list(line.get_ydata()) == [0.58, 0.58]


def test_traversals_have_rows_by_depth_and_latent(curves: InMemory, ax: Axes) -> None:
    figures.traversals(curves, ax)
    panels = np.array(ax.figure.axes[1:]).reshape(6, 3)
    assert [panel.get_title() for panel in panels[3]] == [f"β = {beta:g}, depth 3" for beta in (0.001, 1, 5)]
    data = curves.pictures("traversals").sel(beta=1.0, depth=3, seed=0).isel(rank=2)
    drawn = panels[5, 1].images[0].get_array()
    np.testing.assert_array_equal(drawn[:, 4:8], data["traversal"].isel(sample=1, channel=0))
    assert panels[5, 1].get_ylabel() == f"z{data['latent']:.0f}, {data['share']:.0%}"


def test_settings_without_finished_runs_are_left_out(curves: InMemory) -> None:
    for name, group in curves.tree.children.items():
        if "depth" in group.coords:
            curves.tree[name] = xr.DataTree(group.to_dataset().where(group["depth"] == 1))
    curves.images()["pareto_k"].loc[{"depth": 3}] = np.nan
    drawn = {name: Figure(layout="constrained") for name in ("traversals", "information", "pareto_k", "saturation")}
    for name, figure in drawn.items():
        figures.FIGURES[name](curves, figure.subplots())
    titles = {panel.get_title() for panel in drawn["traversals"].axes} - {""}
    assert titles == {f"β = {beta:g}, depth 1" for beta in (0.001, 1, 5)}
    texts = [text.get_text() for figure in drawn.values() for text in text_of(figure)]
    assert [text for text in texts if "nan" in text or "depth 3" in text] == []


def test_only_pictures_that_are_drawn_are_read(curves: InMemory, ax: Axes, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    read = InMemory.pictures
    monkeypatch.setattr(InMemory, "pictures", lambda self, group, /, **at: asked.append(at) or read(self, group, **at))
    figures.traversals(curves, ax)
    assert asked == [{"beta": [0.001, 1.0, 5.0], "seed": 0}]


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figure_of_no_results_is_empty(name: str, ax: Axes) -> None:
    study = Study(name="empty", beta=[0.1, 1], prior=["vamp", "flow"])
    assert figures.FIGURES[name](InMemory(empty_results(study)), ax) is ax
    assert not any(each.has_data() for each in ax.figure.axes)
    assert figures.captions()[name].endswith(".")


def text_of(figure: Figure) -> list[Text]:
    """All visible text."""
    seen = [text for legend in figure.legends for text in legend.get_texts()]
    for ax in figure.axes:
        for axis, (low, high) in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
            ticks = [*zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)]
            seen += [label for place, label in ticks if low <= place <= high]
            seen.append(axis.label)
        seen += [ax.title, *ax.texts, *(ax.get_legend().get_texts() if ax.get_legend() else [])]
    return [text for text in seen if text.get_text().strip() and text.get_visible()]


@pytest.mark.usefixtures("all_figures")
@pytest.mark.parametrize("width", [pytest.param(None, marks=pytest.mark.long), 3.3, 6.9])
def test_text_does_not_overlap_in_any_figure(width: float | None, curves: InMemory) -> None:
    """Nor does it leave the figure, and it is neither small nor large."""
    drawn = figures.drawn(curves, width=width)
    assert {"rate_distortion", "saturation", "learning_curves", "pareto_k", "traversals"} <= set(drawn)
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        boxes = [(text.get_text(), text.get_window_extent()) for text in text_of(figure)]
        assert len(boxes) > 5
        for (one, first), (other, second) in combinations(boxes, 2):
            assert not first.overlaps(second), f"{name}: '{one}' over '{other}'"
        for one, first in boxes:
            assert figure.bbox.x0 <= first.x0, f"{name}: '{one}'"
            assert first.x1 <= figure.bbox.x1, f"{name}: '{one}'"
        assert {
            text.get_text(): text.get_fontsize() for text in text_of(figure) if not 6.9 < text.get_fontsize() < 9.1
        } == {}
        assert width in (None, figure.get_figwidth())


@pytest.mark.usefixtures("all_figures")
@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(dark: bool, curves: InMemory) -> None:
    """At least 4.5 : 1, as level AA of the Web Content Accessibility Guidelines asks for."""
    for name, figure in figures.drawn(curves, dark=dark).items():
        background = luminance(figure.get_facecolor())
        assert (background < 0.05) == dark
        for text in text_of(figure):
            low, high = sorted([background, luminance(text.get_color())])
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{name}: '{text.get_text()}' in {text.get_color()}"


def luminance(colour: Any) -> float:
    """Relative luminance of a colour in sRGB."""
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_legend_of_a_drawing_in_a_larger_figure_is_inside_its_axes(curves: InMemory) -> None:
    left, right = Figure(layout="constrained").subplots(1, 2)
    figures.distortion(curves, left)
    figures.distortion(curves, right)
    assert not left.figure.legends
    assert left.get_legend() is not None
    assert right.get_legend() is not None


@pytest.mark.long
@pytest.mark.usefixtures("all_figures")
def test_figures_for_print_have_their_width_and_fonts(curves: InMemory, tmp_path: Path) -> None:
    (file,) = curves.save_figures(tmp_path, "rate_distortion", width=3.3)
    assert file == tmp_path / "rate_distortion.pdf"
    content = file.read_bytes()
    assert b"/MediaBox [ 0 0 237.6 " in content
    assert b"/FontFile2" in content  # TrueType
    assert b"/Type3" not in content
    several = curves.save_figures(tmp_path, formats=["svg", "png"])
    assert {file.suffix for file in several} == {".svg", ".png"}
    assert {file.stem for file in several} == figures.drawn(curves).keys()
    for names, formats, expected in (
        (["nonsense"], ["pdf"], "unknown figure 'nonsense'; valid: rate_distortion, "),
        (["pair_plot"], ["pdf"], "pair_plot: expected results that the figure could show, got none"),
        ([], ["gif"], "unknown format 'gif'; valid: png, svg, pdf"),
    ):
        with pytest.raises(InputError, match=expected):
            curves.save_figures(tmp_path, *names, formats=formats)
