"""Records and weights: what is saved is what is loaded, and no changed byte goes unnoticed."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import STORED, no_drawing

from pyrovae import InputError, run
from pyrovae.measures import MeasureResult, Quantity, TrainedRun
from pyrovae.measures.evaluate import Measurements
from pyrovae.store import records, schema
from pyrovae.store.checkpoint import Checkpoint, load_header
from pyrovae.store.records import CURVES, RecordHeader

#: Quantities of every form, as a measure of the user's declares them.
QUANTITIES = (
    Quantity("count", "a plain number", unit="1", heading="count"),
    Quantity("angles", "a number for each split", unit="°", kind="unbiased", dims=("split",), per_image=True),
    Quantity("depths", "a number for each latent site", unit="1", kind="exact", dims=("level", "split")),
    Quantity("marks", "values per image", unit="1", dims=("split", "image")),
    Quantity("missing", "a number that is not measured", unit="1"),
    Quantity("picture", "a picture in bytes", unit="1/255", dims=("row", "column"), group="drawn"),
    Quantity("line", "a curve — of ξ", unit="nats", dims=("point",), group="drawn", variable="ξ"),
)


def measure(run: TrainedRun) -> MeasureResult:
    sites = list(run.terms[0].rates)
    return MeasureResult(
        count=7,
        angles=(torch.arange(3.0), torch.tensor([0.1, torch.inf])),
        depths={site: (number, -number) for number, site in enumerate(sites)},
        marks=(torch.tensor([1.0, torch.nan]), torch.zeros(0)),
        missing=None,
        picture=np.arange(6, dtype=np.uint8).reshape(2, 3),
        line=np.array([1e-300, np.pi]),
        note="β has no unit",
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The arguments of `records.save` for a run with two latent sites and a measure of the user's."""
    found: dict[str, Any] = {}
    save = records.save

    def noted(file: Path, header: RecordHeader, measured: Measurements, curves: Any) -> None:
        found.update(file=file, header=header, measured=measured, curves=curves)
        save(file, header, measured, curves)

    study = STORED.replace(
        model="hierarchical", guide="hierarchical", beta=0.1, depth=1, steps=3, **{"measure.also": ["measured:measure"]}
    )
    module = ModuleType("measured")
    module.QUANTITIES, module.measure = QUANTITIES, measure  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch, no_drawing():
        patch.setitem(sys.modules, "measured", module)
        patch.setattr(records, "save", noted)
        run(study, tmp_path_factory.mktemp("records") / "study", quiet=True)
    return found


# What is saved is what is loaded


def test_header_is_loaded_as_saved(saved: dict[str, Any]) -> None:
    header = records.load_header(saved["file"])
    assert repr(header) == repr(saved["header"])
    assert header.declared == saved["measured"].quantities
    assert header.sites == ["z2", "z1"]
    assert "β has no unit" in header.skipped


def test_numbers_and_curves_are_loaded_as_saved(saved: dict[str, Any]) -> None:
    record = records.load(saved["file"])
    for group, numbers in saved["measured"].numbers.items():
        for name, values in numbers.items():
            loaded = record.numbers[group][name]
            of_splits = loaded.shape != values.shape
            np.testing.assert_array_equal(loaded[..., :2] if of_splits else loaded, values, strict=True)
            assert not of_splits or np.isnan(loaded[..., 2:]).all(), "no validation images"
    assert record.numbers["measured"]["depths"][:, :2].tolist() == [[0, 0], [1, -1]]
    assert np.isnan(record.numbers["measured"]["missing"])
    assert set(record.curves) == {"step", *CURVES}
    for name, values in saved["curves"].items():
        np.testing.assert_array_equal(record.curves[name], values, strict=True)


def test_images_and_pictures_are_loaded_as_saved(saved: dict[str, Any]) -> None:
    images, measured = records.load_images(saved["file"]), saved["measured"]
    assert list(images) == list(measured.images)
    for name, values in measured.images.items():
        np.testing.assert_array_equal(images[name], values, strict=True)
    for group, pictures in measured.pictures.items():
        found = records.load_pictures(saved["file"], group)
        assert list(found) == list(pictures)
        for name, values in pictures.items():
            np.testing.assert_array_equal(found[name].values, values, strict=True)
    assert records.load_pictures(saved["file"], "drawn")["ξ"].attrs == {"units": "nats", "long_name": "a curve — of ξ"}


def test_xarray_reads_a_record(saved: dict[str, Any]) -> None:
    with xr.open_datatree(saved["file"], engine="h5netcdf") as tree:
        numbers = tree["numbers/value"]
        assert (
            numbers.sel(quantity="rate_distortion/rate/test") == saved["measured"].numbers["rate_distortion"]["rate"][1]
        )
        assert tree["images/value"].dims == ("name", "split", "image")
        np.testing.assert_array_equal(tree["drawn/picture"], [[0, 1, 2], [3, 4, 5]])
        assert tree.attrs["key"] == saved["header"].key
        assert tree["curves/loss"].attrs["long_name"] == CURVES["loss"][0]


def test_record_of_a_later_format_is_one_line(saved: dict[str, Any], tmp_path: Path) -> None:
    header = saved["header"].model_copy(update={"format": 2})
    records.save(tmp_path / "record.nc", header, saved["measured"], {})
    with pytest.raises(InputError, match="expected a record of format 1, got 2; open it with the version"):
        records.load_header(tmp_path / "record.nc")


# No changed byte goes unnoticed


def _record(file: Path) -> list[object]:
    """All that can be loaded of a record, in a form that can be compared."""
    record = records.load(file)
    loaded = {**record.numbers, "curves": record.curves, "images": records.load_images(file)}
    groups = sorted({each.group for each in record.header.declared if each.is_picture})
    pictures = [(group, records.load_pictures(file, group)) for group in groups]
    return [
        repr(record.header),
        [(group, name, _bits(values)) for group, values in loaded.items() for name, values in values.items()],
        [(group, name, each.dims, _bits(each.values)) for group, each in pictures for name, each in each.items()],
    ]


def _bits(values: Any) -> tuple[object, ...]:
    return values.shape, values.dtype, values.tobytes()


def _weights(file: Path) -> list[object]:
    checkpoint = Checkpoint.load(file)
    groups = checkpoint.groups.items()
    return [checkpoint.header, [(group, name, _bits(t.numpy())) for group, each in groups for name, t in each.items()]]


def _tree(file: Path) -> list[object]:
    return [(node.path, repr(node.to_dataset(inherit=False).to_dict())) for node in schema.load(file).subtree]


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "record": ("runs/*/record.nc", _record),
    "weights": ("runs/*/weights.safetensors", _weights),
    "header of weights": ("runs/*/weights.safetensors", load_header),
    "results": ("results.nc", _tree),
}


def check_changes(name: str, folder: Path, places: Callable[[int], Iterable[int]], copy: Path) -> None:
    """Asserts that changed bytes of a file are refused in one line, or change nothing that is loaded."""
    pattern, load = READERS[name]
    file = min(folder.glob(pattern))
    content, before = file.read_bytes(), load(file)
    rng, refusals = np.random.default_rng(0), []
    for place in places(len(content)):
        changed = bytearray(content)
        changed[place] ^= rng.integers(1, 256)
        copy.write_bytes(changed)
        try:
            assert load(copy) == before, f"byte {place} of {len(content)}"
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 10
    assert [each for each in refusals if "\n" in each or "the file is damaged" not in each] == []


@pytest.mark.parametrize("name", READERS)
def test_changed_byte_is_refused_or_changes_nothing(name: str, stored: Path, tmp_path: Path) -> None:
    """Bytes drawn at random, most of them at the beginning, where the metadata of a file is."""
    rng = np.random.default_rng(1)
    check_changes(
        name, stored, lambda size: [*rng.integers(6000, size=25), *rng.integers(size, size=25)], tmp_path / "copy"
    )


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_every_changed_byte_is_refused_or_changes_nothing(name: str, stored: Path, tmp_path: Path) -> None:
    check_changes(name, stored, range, tmp_path / "copy")


@pytest.mark.parametrize("change", [b'"F32"', b"[1,4]"])
def test_changed_type_or_shape_of_weights_is_refused(change: bytes, stored: Path, tmp_path: Path) -> None:
    """The values stay, in another form."""
    content = min(stored.glob("runs/*/weights.safetensors")).read_bytes()
    assert change in content
    (tmp_path / "copy").write_bytes(content.replace(change, {b'"F32"': b'"I32"', b"[1,4]": b"[4,1]"}[change], 1))
    with pytest.raises(InputError, match=r"the file is damaged \(it was changed after it was written\)"):
        Checkpoint.load(tmp_path / "copy")


@pytest.mark.parametrize("size", [0, 1, 100, 5000])
@pytest.mark.parametrize("name", READERS)
def test_cut_file_is_refused_in_one_line(name: str, size: int, stored: Path, tmp_path: Path) -> None:
    pattern, load = READERS[name]
    (tmp_path / "copy").write_bytes(min(stored.glob(pattern)).read_bytes()[:size])
    with pytest.raises(InputError, match="but the file is damaged") as caught:
        load(tmp_path / "copy")
    assert "\n" not in str(caught.value)
