"""Results are what the records of the runs say, whatever happened to the files of the study."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from helpers import STORED, contents, stopped_after
from matplotlib import pyplot
from matplotlib.figure import Figure

from pyrovae import InputError, Study, open_results, run
from pyrovae.measures.measure import PER_IMAGE_DIMS
from pyrovae.runner.remeasure import reevaluate
from pyrovae.store import records, schema
from pyrovae.store.checkpoint import Checkpoint
from pyrovae.store.layout import RunFolder
from pyrovae.store.results import _command
from pyrovae.study import Run, key_of, parse_yaml

EVALUATION = "samples=2"


def place(folder: Path, run: Run) -> RunFolder:
    return RunFolder.of(folder, key_of(run))


def runs_at(**at: Any) -> list[Run]:
    return [run for run in STORED.resolved().runs() if all(getattr(run, key) == value for key, value in at.items())]


def assert_same(one: xr.DataTree, other: xr.DataTree, *, without: tuple[str, ...] = ()) -> None:
    """Asserts that two trees are identical, except for some variables."""
    assert [node.path for node in one.subtree] == [node.path for node in other.subtree]
    for node in one.subtree:
        ours, theirs = (tree[node.path].to_dataset().drop_vars(without, errors="ignore") for tree in (one, other))
        xr.testing.assert_identical(ours, theirs)


# The file of results is derived


def test_results_file_holds_the_tree_of_all_records(folder: Path) -> None:
    tree = open_results(folder).tree
    assert_same(schema.load(folder / "results.nc"), tree)
    (folder / "results.nc").unlink()
    assert_same(open_results(folder).tree, tree)
    assert set(tree["runs/status"].values.flat) == {"done"}


def test_current_results_file_is_read_instead_of_the_records(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = open_results(folder).tree
    monkeypatch.setattr(records, "load", None)
    assert_same(open_results(folder).tree, tree)


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda file: file.write_bytes(file.read_bytes()[:1000]),
        lambda file: file.write_bytes(b"not netCDF"),
        lambda file: xr.Dataset().to_netcdf(file, engine="h5netcdf"),
    ],
    ids=["deleted", "cut", "replaced", "empty"],
)
def test_results_file_that_cannot_be_used_is_assembled_again(damage: Callable[[Path], object], folder: Path) -> None:
    file, tree = folder / "results.nc", open_results(folder).tree
    before = file.read_bytes()
    damage(file)
    assert_same(open_results(folder).tree, tree)
    run(STORED, folder, quiet=True)
    assert file.read_bytes() == before


def test_results_follow_records_that_leave_and_return(folder: Path, tmp_path: Path) -> None:
    whole = open_results(folder).tree
    (one,) = runs_at(beta=1, depth=2)
    shutil.move(place(folder, one).path, tmp_path / "elsewhere")
    left = open_results(folder)
    assert [left.status(run) for run in STORED.resolved().runs()] == ["done", "done", "done", "pending"]
    kept = left.tree["rate_distortion"].to_dataset()
    assert kept.sel(depth=2, beta=1).drop_vars("floor").isnull().to_array().all()
    xr.testing.assert_identical(kept.sel(depth=1), whole["rate_distortion"].to_dataset().sel(depth=1))
    left.save()
    shutil.move(tmp_path / "elsewhere", place(folder, one).path)
    assert_same(open_results(folder).tree, whole)


@pytest.mark.parametrize("evaluation", ["", EVALUATION])
def test_results_follow_a_record_that_is_replaced(evaluation: str, folder: Path) -> None:
    (one,) = runs_at(beta=1, depth=2)
    with h5py.File(place(folder, one).record(evaluation), "r+") as opened:
        labels = opened["numbers/quantity"].asstr()[()].tolist()
        opened["numbers/value"][labels.index("rate_distortion/rate/test")] = 7.0
    results = open_results(folder)
    shown, other = results.tree, results.evaluations[EVALUATION].tree
    if evaluation:
        shown, other = other, shown
    rates = [tree["rate_distortion/rate"].sel(split="test", seed=0, depth=2, beta=1).item() for tree in (shown, other)]
    assert rates[0] == 7
    assert rates[1] != 7


def test_results_follow_evaluations_that_leave_and_come(folder: Path) -> None:
    for each in folder.glob("runs/*/evaluations"):
        shutil.rmtree(each)
    results = open_results(folder)
    assert results.evaluations == {}
    results.save()
    reevaluate(folder, samples=3)
    assert list(open_results(folder).evaluations) == ["samples=3"]


def test_evaluation_of_earlier_weights_is_left_out(folder: Path) -> None:
    (one,) = runs_at(beta=1, depth=2)
    with h5py.File(place(folder, one).record(EVALUATION), "r+") as opened:
        opened.attrs["weights"] = "0" * 64
    rates = open_results(folder).evaluations[EVALUATION].tree["rate_distortion/rate"]
    assert rates.sel(beta=1, depth=2).isnull().all()
    assert rates.sel(depth=1).notnull().all()


# Damaged and missing files


@pytest.mark.parametrize("size", [0, 1000])
def test_damaged_record_is_one_line_and_measured_again(
    size: int, folder: Path, trained: list[tuple[frozenset[str], int]]
) -> None:
    whole, before = open_results(folder).tree, contents(folder, "weights.safetensors")
    (one,) = runs_at(beta=1, depth=2)
    file = place(folder, one).record()
    file.write_bytes(file.read_bytes()[:size])
    for use in (lambda: open_results(folder), lambda: run(STORED, folder, quiet=True)):
        with pytest.warns(UserWarning, match="damaged") as caught:
            results = use()
        (warning,) = caught
        assert str(warning.message).startswith(f"{file}: expected results, but the file is damaged (")
        assert "\n" not in str(warning.message)
        xr.testing.assert_identical(
            results.tree["rate_distortion"].to_dataset().sel(depth=1),
            whole["rate_distortion"].to_dataset().sel(depth=1),
        )
    assert trained == []
    assert contents(folder, "weights.safetensors") == before
    assert_same(results.tree, whole, without=("seconds", "file"))


def test_record_without_weights_is_a_result(folder: Path, trained: list[tuple[frozenset[str], int]]) -> None:
    before = contents(folder, "*.nc")
    (one,) = runs_at(beta=1, depth=2)
    place(folder, one).weights.unlink()
    results = run(STORED, folder, quiet=True)
    assert (trained, results.status(one)) == ([], "done")
    assert contents(folder, "*.nc") == before
    with pytest.raises(InputError, match=r"run at .*'depth': 2.* is not trained yet, or its weights are missing"):
        results.pair(beta=1, depth=2)
    with pytest.raises(InputError, match=r"expected the weights of the run at .*weights\.safetensors is missing"):
        reevaluate(folder, samples=3)
    assert np.isfinite(results.images(beta=1, depth=2)["rate"].sel(split="test", seed=0)).all()


def test_damaged_weights_with_a_record_are_refused_where_needed(
    folder: Path, trained: list[tuple[frozenset[str], int]]
) -> None:
    (one,) = runs_at(beta=1, depth=2)
    file = place(folder, one).weights
    file.write_bytes(file.read_bytes()[:1000])
    results = run(STORED, folder, quiet=True)
    assert (trained, results.status(one)) == ([], "done")
    for use in (lambda: results.pair(beta=1, depth=2), lambda: reevaluate(folder, samples=3)):
        with pytest.raises(InputError, match=r"weights\.safetensors: expected weights, but the file is damaged \("):
            use()


# Unfinished runs


def test_half_trained_weights_never_make_a_finished_run(
    folder: Path, stored: Path, trained: list[tuple[frozenset[str], int]]
) -> None:
    """Weights and records of a cohort are lost, and the run that trains it again is killed."""
    lost = runs_at(depth=2)
    for each in lost:
        shutil.rmtree(place(folder, each).path)
    with stopped_after(5):
        run(STORED, folder, quiet=True)
    results = open_results(folder)
    assert {results.status(each) for each in lost} == {"pending"}
    for use in (lambda: results.pair(beta=1, depth=2), lambda: reevaluate(folder, samples=3)):
        with pytest.raises(InputError, match=r"not trained yet|not finished"):
            use()
    run(STORED, folder, quiet=True)
    assert contents(folder, "weights.safetensors") == contents(stored, "weights.safetensors")
    assert [step for _, step in trained] == [0, 5]


def test_record_of_other_weights_is_no_record(folder: Path, stored: Path) -> None:
    """Those of a run that is half trained again, next to the record of the whole training."""
    results = open_results(folder)
    for each in runs_at(depth=2):
        place(folder, each).weights.unlink()
        place(folder, each).record().rename(place(folder, each).path / "kept")
    with stopped_after(5):
        run(STORED, folder, quiet=True)
    (moving,) = folder.glob("training/*.safetensors")
    state = Checkpoint.load(moving)
    for each in runs_at(depth=2):
        state.select([key_of(each)]).save(place(folder, each).weights)
        (place(folder, each).path / "kept").rename(place(folder, each).record())
    moving.unlink()
    with pytest.raises(InputError, match=r"the training of the run at .* is not finished"):
        results.pair(beta=1, depth=2)
    run(STORED, folder, quiet=True)
    assert contents(folder, "weights.safetensors") == contents(stored, "weights.safetensors")
    assert_same(open_results(folder).tree, results.tree, without=("seconds", "file"))


# Values per image and pictures


@pytest.mark.parametrize("evaluation", ["", EVALUATION])
def test_values_per_image_are_those_of_the_records(evaluation: str, stored: Path) -> None:
    results = open_results(stored)
    images = (results.evaluations[evaluation] if evaluation else results).images()
    assert images["rate"].dims == ("beta", "seed", "depth", *PER_IMAGE_DIMS)
    for each in STORED.resolved().runs():
        found = records.load_images(place(stored, each).record(evaluation))
        mine = images.sel(beta=each.beta, seed=each.seed, depth=each.settings["depth"])
        assert set(found) == set(images)
        for name, values in found.items():
            np.testing.assert_array_equal(mine[name], values)
    mean = images["rate"].mean("image")
    rates = (results.evaluations[evaluation] if evaluation else results).tree["rate_distortion/rate"]
    xr.testing.assert_allclose(mean, rates.transpose(*mean.dims))
    assert images["rate"].attrs["units"] == "nats per image"
    assert 0 < images["pareto_k"].attrs["threshold"] < 1


def test_pictures_are_those_of_the_records(stored: Path) -> None:
    results = open_results(stored)
    pictures = results.pictures("reconstructions")
    assert pictures["original"].dims[:3] == ("beta", "seed", "depth")
    for each in STORED.resolved().runs():
        found = records.load_pictures(place(stored, each).record(), "reconstructions")
        assert set(found) == set(pictures)
        for name, values in found.items():
            mine = pictures[name].sel(beta=each.beta, seed=each.seed, depth=each.settings["depth"])
            xr.testing.assert_identical(mine.variable, values)
    assert results.pictures("nothing").data_vars == {}


@pytest.mark.parametrize(
    "at", [{}, {"beta": 1}, {"depth": [2, 1]}, {"depth": (2,), "beta": 0.1}, {"beta": [1], "seed": 0, "depth": 2}]
)
def test_any_selection_of_runs_is_that_of_all(at: dict[str, Any], stored: Path) -> None:
    results = open_results(stored)
    chosen = {axis: list(value) if isinstance(value, tuple) else value for axis, value in at.items()}
    xr.testing.assert_identical(results.images(**at), results.images().sel(chosen))
    xr.testing.assert_identical(results.pictures("samples", **at), results.pictures("samples").sel(chosen))


def test_runs_are_selected_by_numbers_of_numpy(stored: Path) -> None:
    results = open_results(stored)
    expected = results.images(beta=0.1, depth=[2])
    xr.testing.assert_identical(results.images(beta=np.float32(0.1), depth=np.array([2])), expected)
    assert results.run(beta=np.float32(0.1), depth=np.int64(2)) == results.run(beta=0.1, depth=2)


def test_only_selected_records_are_read(folder: Path) -> None:
    results = open_results(folder)
    for each in runs_at(depth=1):
        place(folder, each).record().write_bytes(b"damaged")
    for read in (results.images, lambda **at: results.pictures("samples", **at)):
        read(depth=2)
        with pytest.raises(InputError, match=r"record\.nc: expected results, but the file is damaged"):
            read(depth=[1, 2])


def test_runs_without_a_record_have_missing_values(folder: Path) -> None:
    for each in runs_at(depth=2, beta=1):
        place(folder, each).record().unlink()
    results = open_results(folder)
    assert results.images(depth=2)["rate"].sel(beta=1).isnull().all()
    assert results.images(depth=2)["rate"].sel(beta=0.1, split="test").notnull().all()
    assert not results.pictures("samples", depth=2)["image"].sel(beta=1).any()
    assert results.pictures("plane")["log_q"].sel(depth=2, beta=1).isnull().all()
    assert results.images(depth=2, beta=1).data_vars == {}


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ({"width": 4}, "unknown axis 'width'; valid: beta, seed, depth"),
        ({"beta": 0.5}, r"beta: expected one of \[0\.1, 1\.0\], got 0\.5"),
        ({"depth": 3}, r"depth: expected one of \[1, 2\], got 3"),
    ],
)
def test_unknown_axis_or_value_is_one_line(at: dict[str, Any], message: str, stored: Path) -> None:
    results = open_results(stored)
    uses: list[Callable[[], object]] = [
        lambda: results.images(**at),
        lambda: results.pictures("samples", **at),
        lambda: results.pair(**{"beta": 1, "depth": 1} | at),
    ]
    for use in uses:
        with pytest.raises(InputError, match=message):
            use()
    with pytest.raises(InputError, match=r"depth: expected one of \[1, 2\], got 3"):
        results.images(depth=[1, 3])


def test_axis_of_splits_is_not_mistaken_for_train_and_test(tmp_path: Path) -> None:
    study = STORED.replace(split=["random", "checkerboard"], beta=1, depth=1, steps=1)
    images = run(study, tmp_path / "study", quiet=True).images(data_split="checkerboard")
    assert images["rate"].dims == ("beta", "seed", "split", "image")


# Results as a user sees them


def test_results_and_study_are_short_as_text(folder: Path) -> None:
    results = open_results(folder)
    assert repr(results).splitlines() == [
        f"Results of 'stored' in {folder}: 4 done",
        "  beta 0.1, 1.0; seed 0; depth 1, 2",
        "  evaluation samples=2",
    ]
    assert results._repr_html_().count("<tr") > 4
    assert repr(results.study).startswith("Study 'stored' of 4 runs: beta 0.1, 1.0; seed 0; depth 1, 2\n  Run(")
    assert repr(Run(beta=0.1, depth=3)) == "Run(beta=0.1, depth=3)"
    assert repr(results.pair(beta=1, depth=1)).endswith("at beta 1, trained on 64 images")


def test_table_has_a_row_for_each_run(stored: Path) -> None:
    results = open_results(stored)
    whole, part = results.table(), results.table("rate_distortion")
    assert len(whole) == len(part) == 4
    np.testing.assert_array_equal(part["distortion/test"], whole["rate_distortion/distortion/test"])
    at = part[(part["beta"] == 0.1) & (part["depth"] == 2)]["distortion/test"].item()
    tree = results.tree["rate_distortion/distortion"]
    assert at == tree.sel(beta=0.1, depth=2, seed=0, split="test").item()
    with pytest.raises(InputError, match="unknown group 'rates'; valid: rate_distortion, "):
        results.table("rates")


def test_findings_are_lines_and_a_table(stored: Path) -> None:
    found = open_results(stored).findings()
    assert repr(found).splitlines() == [str(verdict) for verdict in found]
    table = found.frame()
    assert list(table["outcome"]) == [verdict.outcome for verdict in found]
    assert list(table["finding"]) == [verdict.text for verdict in found]


def test_figures_are_drawn_by_name_on_given_axes(stored: Path) -> None:
    results, ax = open_results(stored), Figure().subplots()
    assert results.plot("rate_distortion", ax) is ax
    assert ax.get_xlabel() == "rate R (nats per image)"
    own = results.plot("distortion")
    assert own.has_data()
    pyplot.close(own.get_figure())
    with pytest.raises(InputError, match="unknown figure 'plane'; valid: rate_distortion, "):
        results.plot("plane")
    with pytest.raises(InputError, match="could show, got none"):
        open_results(stored).plot("gap_decomposition", Figure().subplots())


def test_grown_results_have_the_new_runs(folder: Path, trained: list[tuple[frozenset[str], int]]) -> None:
    grown = open_results(folder).grow(seed=1, quiet=True)
    assert grown.study.axes["seed"] == (0, 1)
    assert set(grown.tree["runs/status"].values.flat) == {"done"}
    assert sorted(len(keys) for keys, _ in trained) == [2, 2]
    with pytest.raises(InputError, match="width: 4 before, 8 now"):
        grown.grow(width=8, quiet=True)


def test_swapped_prior_is_an_evaluation_of_the_results(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = open_results(folder)
    swapped = results.swap_prior({"name": "mixture", "components": 2}, quiet=True)
    assert swapped.name == "prior=mixture(components=2)"
    assert swapped.name in results.evaluations


@pytest.mark.parametrize(
    "settings",
    [
        {"split": "random", "depth": 1},
        {"network": "linear", "depth": None, "width": None, "beta": [0.1, 2]},
        {"model": "gap", "gamma": 0.01, "steps": 7, "measure.images": 64, "margin": 0.02},
        {"prior": ["vamp", "mixture(components=5)"], "precision": "bfloat16"},
    ],
)
def test_command_of_a_study_has_its_settings(settings: dict[str, Any]) -> None:
    """Also those that are defaults of a run, but not of the study."""
    study = Study.load("quick", **settings).resolved()
    words = shlex.split(_command(study))
    assert words[:3] == ["pyrovae", "run", "quick"]
    options = [word.partition("=") for word in words[4::2]]
    again = Study.load("quick", **{key: parse_yaml(value) for key, _, value in options})
    assert again.resolved().settings() == study.settings()
