"""Values per image and pictures: a file for each cohort, read on demand."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest
import xarray as xr

from pyrovae import InputError, Study, open_results, run
from pyrovae.runner.remeasure import reevaluate
from pyrovae.store import records
from pyrovae.system import atomic

pytestmark = pytest.mark.usefixtures("few_figures")

STUDY = Study.of(
    name="small",
    train_images=64,
    test_images=32,
    beta=[0.1, 1],
    depth=[1, 2],
    width=8,
    latent_size=2,
    steps=2,
    batch_size=16,
    measure={"images": 32, "outer": 16, "likelihood_images": 8, "particles": 4, "reconstructions": 8, "probe": 8},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with mock.patch("pyrovae.analysis.figures.FIGURES", {}):
        run(STUDY, tmp_path_factory.mktemp("details") / "study", quiet=True)
        reevaluate(tmp_path_factory.getbasetemp() / "details0/study", samples=2)
    return tmp_path_factory.getbasetemp() / "details0/study"


@pytest.fixture
def study(whole: Path, tmp_path: Path) -> Path:
    """A copy, of which nothing was read before."""
    return Path(shutil.copytree(whole, tmp_path / "study"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files of details that are read."""
    names: list[str] = []
    reading = records.hdf.reading

    def noted(file: Path, what: str) -> object:
        names.append(f"{file.parent.name}/{file.name}")
        return reading(file, what)

    records._read.cache_clear()
    monkeypatch.setattr(records.hdf, "reading", noted)
    yield names
    records._read.cache_clear()


def test_only_requested_cohorts_are_read(study: Path, read: list[str]) -> None:
    """Opening results reads one file of each evaluation, for the sizes of pictures."""
    tree = open_results(study).tree
    of_opening = ["study/results.nc", "details/cohort-000.h5", "evaluation_1/cohort-000.h5"]
    assert read == of_opening
    found = tree["images/distortion"].sel(depth=2, beta=1, seed=0, split="test")
    pictures = tree["reconstructions/original"].sel(depth=2, beta=1, seed=0)
    assert read == of_opening
    assert np.isfinite(found.values).all()
    assert pictures.values.any()
    assert read == [*of_opening, "details/cohort-001.h5"]


def test_any_selection_of_details_equals_the_measured_ones(study: Path) -> None:
    """Their means are the numbers of the runs, and a selection is that of all values."""
    tree = open_results(study).tree
    for measurement in (tree, tree["evaluation_1"]):
        images, runs = measurement["images"].to_dataset(), measurement["rate_distortion"].to_dataset()
        for name in ("distortion", "rate"):
            xr.testing.assert_allclose(images[name].mean("image"), runs[name].transpose(*images[name].dims[:-1]))
    lazy = tree["images/distortion"]
    values = lazy.values
    for chosen in (
        {"beta": 1},
        {"depth": [1, 0], "image": [3, 1]},
        {"image": slice(2, 9, 3)},
        {"split": 0, "beta": [1]},
        {"image": slice(None, None, -1), "depth": slice(None, None, -1)},
    ):
        xr.testing.assert_equal(lazy.isel(chosen), xr.DataArray(values, lazy.coords, lazy.dims).isel(chosen))
    bounds = tree["images/log_likelihood"]
    assert np.isfinite(bounds.sel(split="test", image=slice(0, 7))).all()
    assert np.isnan(bounds.sel(split="train")).all()
    assert np.isnan(bounds.sel(image=slice(8, None))).all()


def test_details_can_be_assigned(study: Path) -> None:
    tree = open_results(study).tree
    tree["images"]["distortion"].loc[{"beta": 0.1, "image": 0}] = -1.0
    assert (tree["images/distortion"].sel(image=0, beta=0.1) == -1).all()
    assert (tree["images/distortion"].sel(image=0, beta=1) > 0).all()


def test_missing_details_are_measured_again(study: Path, whole: Path) -> None:
    (study / "details/cohort-001.h5").unlink()
    results = open_results(study)
    assert [results.has(cohort) for cohort in results.cohorts()] == [True, False]
    assert np.isnan(results.tree["images/rate"].sel(depth=2)).all()
    assert not results.tree["samples/image"].sel(depth=2).values.any()
    run(STUDY, study, quiet=True)
    for group in ("images", "samples", "rate_distortion"):
        ours, theirs = (open_results(each).tree[group].to_dataset() for each in (study, whole))
        xr.testing.assert_identical(ours, theirs)


@pytest.mark.parametrize("kind", ["cut", "changed", "of another study", "of other shape", "of a reserved group"])
def test_damaged_details_are_reported_and_others_intact(kind: str, study: Path) -> None:
    file = study / "details/cohort-001.h5"
    content = atomic.without_checksum(file.read_bytes())
    file.write_bytes(content)
    with h5py.File(file, "r+") as opened:
        if kind == "of another study":
            opened.attrs["study"] = STUDY.replace(steps=3).to_yaml()
        elif kind == "of other shape":
            attributes = dict(opened["images/rate"].attrs)
            del opened["images/rate"]
            opened["images/rate"] = [1.0, 2.0]
            opened["images/rate"].attrs.update(attributes)
        elif kind == "of a reserved group":
            opened.copy("samples/image", "runs/status")
    written = file.read_bytes() if kind == "changed" else atomic.with_checksum(file.read_bytes())
    file.write_bytes(written[: len(written) // 2] if kind == "cut" else written)
    tree = open_results(study).tree
    assert np.isfinite(tree["images/rate"].sel(depth=1)).all()
    message = "cohort-001.h5: expected details, but the file is damaged .*; delete it, and 'pyrovae run' measures"
    with pytest.raises(InputError, match=message):
        tree["images/rate"].load()


def test_pictures_of_another_size_are_left_out(study: Path) -> None:
    file = study / "details/cohort-001.h5"
    file.write_bytes(atomic.without_checksum(file.read_bytes()))
    with h5py.File(file, "r+") as opened:
        attributes = dict(opened["samples/image"].attrs)
        del opened["samples/image"]
        opened["samples/image"] = np.ones((2, 8, 1, 4, 4), np.uint8)
        opened["samples/image"].attrs.update(attributes)
    file.write_bytes(atomic.with_checksum(file.read_bytes()))
    images = open_results(study).tree["samples/image"]
    assert images.sel(depth=1).values.any()
    assert not images.sel(depth=2).values.any()


def test_cohort_split_after_it_was_measured_is_still_measured(study: Path, read: list[str]) -> None:
    """Its runs are in the file of the whole cohort."""
    results = open_results(study)
    first, _ = results.cohorts()
    halves = results.cut(first)
    assert [cohort.name for cohort in results.cohorts()] == ["000-0", "000-1", "001"]
    assert all(results.has(half) for half in halves)
    run(STUDY, study, quiet=True)
    assert not list(study.glob("details/*-0.h5"))


def test_name_of_a_cohort_is_never_another_path(study: Path) -> None:
    file = study / "results.nc"
    file.write_bytes(atomic.without_checksum(file.read_bytes()))
    with h5py.File(file, "r+") as opened:
        opened["runs/cohort"][0] = "/../../elsewhere"
    file.write_bytes(atomic.with_checksum(file.read_bytes()))
    with pytest.raises(InputError, match="expected the name of a cohort, got '/"):
        open_results(study)
