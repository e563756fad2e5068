from itertools import combinations, product

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.analysis import figures

BETAS = [0.001, 0.005, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 2.0, 3.0, 5.0]


@pytest.fixture
def tree() -> xr.DataTree:
    """Curves in the manner of the paper, both depths close to each other and many β close to 1."""
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
    return xr.DataTree.from_dict({"/rate_distortion": cells, "/information": xr.Dataset(codes), "/theory": theory})


@pytest.fixture
def ax() -> Axes:
    return Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained").subplots()


def test_what_is_drawn_equals_the_results(tree: xr.DataTree, ax: Axes) -> None:
    figures.rate_distortion(tree, ax)
    drawn = {str(line.get_label()): line.get_xydata() for line in ax.lines}
    cells = tree["/rate_distortion"].to_dataset().mean("seed")
    for depth, split in product([1, 3], ["train", "test"]):
        cell = cells.sel(depth=depth, split=split)
        expected = np.stack([cell["rate"], cell["distortion"]], axis=1)
        np.testing.assert_allclose(drawn[f"depth {depth} {split}"], expected)


def test_labels_name_the_test_points_and_nothing_overlaps(tree: xr.DataTree, ax: Axes) -> None:
    figures.rate_distortion(tree, ax)
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


def test_run_without_numbers_leaves_a_gap_and_not_another_label(tree: xr.DataTree, ax: Axes) -> None:
    tree["/rate_distortion"]["rate"].loc[{"beta": 0.1, "depth": 3}] = np.nan
    figures.rate_distortion(tree, ax)
    labels = [text.get_text() for text in ax.texts if text.get_text()]
    assert labels.count("0.1") == 1
    assert len(labels) == 2 * len(BETAS) - 1


def test_where_there_is_no_floor_none_is_drawn(tree: xr.DataTree, ax: Axes) -> None:
    tree["/rate_distortion"]["floor"][:] = np.nan
    figures.rate_distortion(tree, ax)
    assert "floor (test)" not in [line.get_label() for line in ax.lines]


def drawn_lines(ax: Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in ax.lines}


def test_distortion_is_drawn_against_beta(tree: xr.DataTree, ax: Axes) -> None:
    drawn = drawn_lines(figures.distortion(tree, ax))
    cells = tree["rate_distortion"].to_dataset().mean("seed")
    for depth, split in product([1, 3], ["train", "test"]):
        expected = cells["distortion"].sel(depth=depth, split=split)
        np.testing.assert_allclose(drawn[f"depth {depth} {split}"], np.stack([BETAS, expected], axis=1))
    np.testing.assert_allclose(drawn["theory (population)"][:, 1], [50, 60, 90])


def test_information_gap_and_rate_are_drawn_beside_log_n(tree: xr.DataTree, ax: Axes) -> None:
    drawn = drawn_lines(figures.information(tree, ax))
    rate = tree["rate_distortion"]["rate"].sel(split="train").mean("seed")
    codes = tree["information"].to_dataset().mean("seed")
    for depth in (1, 3):
        for symbol, expected in (("R", rate), ("G", codes["prior_gap"]), ("I", codes["mutual_information"])):
            np.testing.assert_allclose(drawn[f"{symbol} depth {depth}"][:, 1], expected.sel(depth=depth))
    assert (drawn["log N = 8.30"][:, 1] == 8.3).all()


def test_theory_is_drawn_in_the_plane(tree: xr.DataTree, ax: Axes) -> None:
    drawn = drawn_lines(figures.rate_distortion(tree, ax))
    np.testing.assert_allclose(drawn["theory (population)"], [[20, 50], [10, 60], [1, 90]])


def test_many_curves_can_be_told_apart_and_their_legend_stands_beside_them(tree: xr.DataTree, ax: Axes) -> None:
    widths = [16, 64, 256, 1024]
    many = [tree["rate_distortion"].to_dataset().assign(distortion=lambda d, w=w: d["distortion"] + w) for w in widths]
    cells = xr.concat(many, xr.Variable("width", widths))
    figures.rate_distortion(xr.DataTree.from_dict({"/rate_distortion": cells}), ax)
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    looks = {
        str(line.get_label()): (line.get_color(), line.get_marker(), line.get_markerfacecolor())
        for line in ax.lines
        if "width" in str(line.get_label())
    }
    assert len(looks) == len(set(looks.values())) == 16
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_window_extent().x0 >= ax.bbox.x1
    assert legend.get_window_extent().x1 <= ax.figure.bbox.x1


def test_floors_of_different_data_are_each_drawn(tree: xr.DataTree, ax: Axes) -> None:
    tree["/rate_distortion"]["floor"].loc[{"depth": 3}] = 30
    figures.rate_distortion(tree, ax)
    assert sorted(line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":") == [30, 49]
