"""Runs are removed, parts of a study merged, and its numbers exported."""

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pyrovae import InputError, Study, open_results, run
from pyrovae.runner.folders import export, merge, remove
from pyrovae.store.checkpoint import Checkpoint
from pyrovae.store.layout import RunFolder, moving_checkpoint
from pyrovae.study import key_of

SMALL = Study(
    name="small", depth=1, width=4, latent_size=2, train_images=32, test_images=16, batch_size=8, steps=4,
    beta=[0.1, 1], seed=[0, 1],
    measure={"images": 16, "outer": 16, "particles": 4, "reconstructions": 4, "probe": 4},
)  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Seeds 0 and 1 of a study, and seed 2."""
    folder = tmp_path_factory.mktemp("parts")
    run(SMALL, folder / "first", quiet=True, compile="never")
    run(SMALL.replace(seed=2), folder / "second", quiet=True, compile="never")
    return folder / "first", folder / "second"


@pytest.fixture
def finished(parts: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(parts[0], tmp_path / "study"))


def distortions(folder: Path) -> xr.DataArray:
    return open_results(folder).tree["rate_distortion"].to_dataset()["distortion"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("runs/*/*")}


def test_a_removed_value_leaves_the_grid_and_the_disk(finished: Path) -> None:
    before = distortions(finished)
    keys = remove(finished, beta=0.1)
    assert len(keys) == 2
    assert not any(RunFolder.of(finished, key).path.exists() for key in keys)
    assert open_results(finished).study.axes["beta"] == (1.0,)
    xr.testing.assert_equal(distortions(finished), before.sel(beta=[1.0]))


def test_a_removed_cell_is_trained_again_to_the_same_weights(finished: Path) -> None:
    before = files_of(finished)
    (key,) = remove(finished, beta=1, seed=0)
    assert (open_results(finished).tree["runs"].to_dataset()["status"] == "pending").sum() == 1
    run(SMALL, finished, quiet=True, compile="never")
    after = files_of(finished)
    assert after.keys() == before.keys()
    assert all(after[name] == content for name, content in before.items() if key not in name)


def test_removal_deletes_checkpoints_of_no_other_run(finished: Path) -> None:
    keys = [key_of(each) for each in SMALL.resolved().runs()]
    stacked = Checkpoint.join([Checkpoint.load(RunFolder.of(finished, key).weights) for key in keys])
    for name, held in {"removed": keys[:2], "kept": keys[1:]}.items():
        stacked.select(held).save(moving_checkpoint(finished, name))
    remove(finished, beta=0.1)
    assert [file.stem for file in (finished / "training").iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ({}, "select: expected the runs to remove"),
        ({"gamma": 1}, "unknown axis 'gamma'; valid: beta, seed"),
        ({"beta": 3}, "beta: expected one of"),
        ({"seed": [0, 1]}, "seed: expected some values to be left"),
    ],
)
def test_a_wrong_removal_changes_nothing(finished: Path, select: dict[str, object], expected: str) -> None:
    before = files_of(finished) | {"study": (finished / "study.yaml").read_bytes()}
    with pytest.raises(InputError, match=expected):
        remove(finished, **select)
    assert files_of(finished) | {"study": (finished / "study.yaml").read_bytes()} == before


def test_merged_parts_are_the_whole_study(parts: tuple[Path, Path], tmp_path: Path) -> None:
    merged = merge(parts, tmp_path / "whole")
    assert merged.study.axes["seed"] == (0, 1, 2)
    assert (merged.tree["runs"].to_dataset()["status"] == "done").all()
    for part in parts:
        xr.testing.assert_equal(
            distortions(part),
            merged.tree["rate_distortion"].to_dataset()["distortion"].sel(seed=distortions(part).seed),
        )
    before = files_of(tmp_path / "whole")
    run(SMALL.replace(seed=[0, 1, 2]), tmp_path / "whole", quiet=True)
    assert files_of(tmp_path / "whole") == before


def test_merging_takes_the_run_with_more_steps(parts: tuple[Path, Path], finished: Path, tmp_path: Path) -> None:
    run(SMALL.replace(steps=8), finished, quiet=True, compile="never")
    for order in ([parts[0], finished], [finished, parts[0]]):
        merged = merge(order, tmp_path / order[0].name)
        assert merged.study.base.steps == 8
        assert files_of(tmp_path / order[0].name) == files_of(finished)


def test_merging_keeps_what_the_folder_of_the_whole_has(parts: tuple[Path, Path], tmp_path: Path) -> None:
    """Such as a longer training of an earlier merge, or another study."""
    merge(parts, tmp_path / "whole")
    run(SMALL.replace(seed=[0, 1, 2], steps=8), tmp_path / "whole", quiet=True, compile="never")
    before = files_of(tmp_path / "whole")
    assert merge(parts, tmp_path / "whole").study.base.steps == 8
    assert files_of(tmp_path / "whole") == before
    run(SMALL.replace(name="other", beta=1, seed=0), tmp_path / "other", quiet=True, compile="never")
    with pytest.raises(InputError, match="expected a part of the study"):
        merge(parts, tmp_path / "other")
    assert open_results(tmp_path / "other").study.name == "other"


def test_other_weights_after_equal_steps_need_a_preference(
    finished: Path, parts: tuple[Path, Path], tmp_path: Path
) -> None:
    changed = next(finished.glob("runs/*/weights.safetensors"))
    checkpoint = Checkpoint.load(changed)
    next(iter(checkpoint.groups["params"].values())).add_(1)
    checkpoint.save(changed)
    with pytest.raises(InputError, match="different weights; take one with --prefer") as error:
        merge([parts[0], finished], tmp_path / "whole")
    assert all(str(folder) in str(error.value) for folder in (parts[0], finished))
    merge([parts[0], finished], tmp_path / "whole", prefer=finished)
    assert (tmp_path / "whole" / changed.relative_to(finished)).read_bytes() == changed.read_bytes()


def test_equal_weights_from_other_cohorts_are_one_version(
    finished: Path, parts: tuple[Path, Path], tmp_path: Path
) -> None:
    changed = next(finished.glob("runs/*/weights.safetensors"))
    checkpoint = Checkpoint.load(changed)
    header = checkpoint.header.model_copy(update={"cohorts": ["another"]})
    Checkpoint(header, checkpoint.groups).save(changed)
    assert changed.read_bytes() != (parts[0] / changed.relative_to(finished)).read_bytes()
    merged = merge([parts[0], finished], tmp_path / "whole")
    assert (merged.tree["runs/status"] == "done").all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"width": 5, "depth": 2}, "width"), ({"measure.images": 8}, "measure.images"), ({"name": "other"}, "name")],
)
def test_parts_of_other_studies_are_refused(
    settings: dict[str, object], expected: str, parts: tuple[Path, Path], tmp_path: Path
) -> None:
    run(SMALL.replace(**settings, beta=1, seed=5), tmp_path / "other", quiet=True)
    with pytest.raises(InputError, match=f"got another .*{expected}"):
        merge([parts[0], tmp_path / "other"], tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_a_part_with_another_value_of_one_setting_adds_an_axis(finished: Path, tmp_path: Path) -> None:
    run(SMALL.replace(depth=2), tmp_path / "deep", quiet=True)
    merged = merge([finished, tmp_path / "deep"], finished)
    assert merged.study.axes["depth"] == (1, 2)
    assert (merged.tree["runs"].to_dataset()["status"] == "done").all()


@pytest.mark.parametrize("to", ["csv", "parquet"])
def test_the_exported_table_has_the_numbers_of_every_run(finished: Path, to: str) -> None:
    file = export(finished, to)  # type: ignore[arg-type]
    table = pd.read_csv(file) if to == "csv" else pd.read_parquet(file)
    expected = distortions(finished).sel(split="test").to_dataframe().reset_index()
    assert len(table) == 4
    both = expected.merge(table, on=["beta", "seed"])
    np.testing.assert_allclose(both["rate_distortion/distortion/test"], both["distortion"], rtol=1e-12)


@pytest.mark.parametrize(("to", "suffix", "engine"), [("netcdf", "nc", "h5netcdf"), ("zarr", "zarr", "zarr")])
def test_the_exported_tree_is_that_of_the_results(
    finished: Path, tmp_path: Path, to: str, suffix: str, engine: str
) -> None:
    file = export(finished, to, tmp_path / f"tree.{suffix}")  # type: ignore[arg-type]
    with xr.open_datatree(file, engine=engine) as tree:
        xr.testing.assert_equal(
            tree["rate_distortion"].to_dataset().load(), open_results(finished).tree["rate_distortion"].to_dataset()
        )


def test_an_export_replaces_nothing_but_an_earlier_one(finished: Path, tmp_path: Path) -> None:
    own = (finished / "results.nc").read_bytes()
    assert export(finished, "netcdf") == finished / "export.nc"
    for file in (finished / "results.nc", next(finished.glob("runs/*/record.nc"))):
        with pytest.raises(InputError, match="expected another file than those in which the study keeps its results"):
            export(finished, "netcdf", file)
    assert (finished / "results.nc").read_bytes() == own
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr/thesis.txt").touch()
    with pytest.raises(InputError, match="got a folder of other files"):
        export(finished, "zarr", tmp_path / "mine.zarr")
    assert (tmp_path / "mine.zarr/thesis.txt").exists()
    for _ in range(2):
        assert export(finished, "zarr") == finished / "export.zarr"


def test_the_format_is_what_the_suffix_says(finished: Path, tmp_path: Path) -> None:
    assert len(pd.read_parquet(export(finished, out=tmp_path / "all.parquet"))) == 4


@pytest.mark.parametrize(
    ("to", "name", "expected"),
    [
        (None, "study.yaml", "expected a file that ends in .csv, .parquet, .nc, .zarr, got '.*study.yaml'"),
        ("csv", "study.yaml", "expected a file that ends in .csv, as csv does"),
        ("csv", "all.parquet", "expected a file that ends in .csv, as csv does"),
    ],
)
def test_another_suffix_is_refused(to: Literal["csv"] | None, name: str, expected: str, finished: Path) -> None:
    before = files_of(finished), (finished / "study.yaml").read_bytes()
    with pytest.raises(InputError, match=expected):
        export(finished, to, finished / name)
    assert (files_of(finished), (finished / "study.yaml").read_bytes()) == before


def test_an_unknown_format_is_refused(finished: Path) -> None:
    with pytest.raises(InputError, match="to: expected csv, parquet, netcdf, zarr, got 'xlsx'"):
        export(finished, "xlsx")  # type: ignore[arg-type]
