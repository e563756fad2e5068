"""Damaged and malicious files are refused in one line, never run code, and need no more memory than their size."""

import gzip
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import readers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pyrovae import InputError, Study, open_results, run
from pyrovae.cli import _setting
from pyrovae.data import cache, images, tetrominoes
from pyrovae.data.torchvision_datasets import _idx
from pyrovae.runner.plan import plan
from pyrovae.store.checkpoint import load_header
from pyrovae.study import Measure, Run, files
from pyrovae.system import tensor_file

#: Settings for few examples, the same in every run.
few = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
STUDY = readers.SMALL


@pytest.fixture(scope="module")
def valid() -> Path:
    """The folder of a finished study."""
    return readers.valid_study()


@pytest.fixture(autouse=True)
def _nothing_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with readers.confined_to(tmp_path_factory.getbasetemp()):
        yield


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """A file with bytes changed, cut off or repeated, or other bytes."""
    place = st.integers(0, len(content))
    change = st.tuples(place, st.binary(min_size=1, max_size=8))
    return st.one_of(
        st.lists(change, min_size=1, max_size=4).map(lambda changes: _changed(content, changes)),
        place.map(lambda end: content[:end]),
        place.map(lambda end: content + content[:end]),
        st.binary(max_size=200),
    )


def _changed(content: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    for place, new in changes:
        content = content[:place] + new + content[place + len(new) :]
    return content


def unless_refused(use: Callable[[], Any]) -> Any:
    """The result of a function; None if it raises InputError."""
    with suppress(InputError):
        return use()
    return None


# All readers


@settings(few, max_examples=15)
@given(data=st.data())
@pytest.mark.parametrize("name", readers.READERS)
def test_damaged_input_is_read_or_refused(name: str, data: st.DataObject, tmp_path: Path) -> None:
    example = data.draw(st.sampled_from(readers.READERS[name].examples()))
    readers.read(name, data.draw(damaged(example)), tmp_path)


@few
@given(data=st.data())
def test_checksum_of_weights_detects_damage(data: st.DataObject, valid: Path, tmp_path: Path) -> None:
    content = readers.weights_of(valid).read_bytes()
    changed = data.draw(damaged(content))
    (tmp_path / "damaged").write_bytes(changed)
    if changed != content:
        with pytest.raises(InputError, match="the file is damaged"):
            tensor_file.load(tmp_path / "damaged")


# Studies

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = [*Run.model_fields, "name", "description", "measure", "checkpoint_every"]
NUMBERS = st.sampled_from([0, 1, 2, 10**6, 10**9, 2**63 - 1, 10**400, -1, 1e-300, 1e300, float("nan"), float("inf")])
CHOICES = st.one_of(
    NUMBERS, st.lists(NUMBERS, max_size=4), VALUES, st.sampled_from(["vamp", "flow", "a:b", "../x", "/"])
)


@few
@given(settings=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=6), CHOICES, max_size=6))
def test_arbitrary_settings_are_planned_or_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(files.to_yaml(settings), encoding="utf-8")
    if study := unless_refused(lambda: Study.load(file)):
        unless_refused(lambda: readers.use_study(study))


@few
@given(
    key=st.sampled_from(NAMES + [f"measure.{name}" for name in Measure.model_fields]),
    value=st.text(max_size=12) | st.integers(),
)
def test_arbitrary_override_is_planned_or_refused(key: str, value: str | int) -> None:
    def override() -> None:
        name, parsed = _setting(f"{key}={value}")
        readers.use_study(Study.load("quick", **{name: parsed}))

    unless_refused(override)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: &a [1, 1]\nbeta: *a", "references (*name) are not supported"),
        ("beta: 1\nsteps: 3\nbeta: 2", "found duplicate key"),
        ("[" * 5000, "nested too deeply"),
        ("beta: 2001-99-99", "does not parse"),
        ("!!python/object/apply:os.system ['touch escaped']", "could not determine a constructor"),
        ("description: \"\\e[31mred\"", "expected printable text"),
        ("name: ../../escaped", "name: string should match pattern"),
        ("width: 9999999999999", "less than or equal to"),
        (f"seed: {list(range(400))}\nlatent_size: {list(range(1, 400))}", "expected a grid of at most 100,000 runs"),
        ("#" * 2_000_000, "more than 1,000,000 characters"),
        ("measure: {images: 1000000000}", "GB of memory are free"),
    ],
)  # fmt: skip
def test_study_file_that_expands_or_runs_code_is_refused(content: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        plan(Study.load(tmp_path / "study.yaml"))
    assert expected in str(refused.value)
    assert not Path("escaped").exists()


def test_oversized_models_are_refused_before_allocation(tmp_path: Path) -> None:
    for setting in ({"width": 10**9}, {"depth": 1000, "width": 10**6}, {"prior": "mixture", "components": 10**9},
                    {"prior": "flow", "width": 10**9}, {"guide": "full_rank", "latent_size": 10**6}):  # fmt: skip
        with pytest.raises(InputError, match="GB of memory are free"):
            run(STUDY.replace(**setting), tmp_path / "study", quiet=True)
    assert not (tmp_path / "study" / "study.yaml").exists()


# Weights

SHAPES = st.lists(st.integers(0, 3), max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16])


@few
@given(data=st.data())
def test_weights_with_other_content_are_used_or_refused(data: st.DataObject, valid: Path, tmp_path: Path) -> None:
    """The checksum is right, and a tensor or an entry of the metadata is missing or different."""
    groups, metadata = tensor_file.load(readers.weights_of(valid))
    group = data.draw(st.sampled_from(sorted(groups)))
    name = data.draw(st.sampled_from(sorted(groups[group])))
    change = data.draw(st.sampled_from(["tensor", "missing", "metadata"]))
    if change == "metadata":
        key = data.draw(st.sampled_from(sorted(metadata)))
        value = data.draw(NUMBERS | st.none() | st.lists(NUMBERS, max_size=4) | st.just({}) | st.text(max_size=3))
        metadata = metadata | {key: value}
    elif change == "missing":
        del groups[group][name]
    else:
        groups[group][name] = torch.ones(data.draw(SHAPES), dtype=data.draw(DTYPES))
    folder = tmp_path / "study"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "study.yaml").write_text(STUDY.to_yaml(), encoding="utf-8")
    tensor_file.save(readers.weights_of(folder), groups, metadata)
    pair = unless_refused(lambda: open_results(folder).pair())
    if pair is not None:
        pair(torch.zeros(2, 3, 32, 32))
    if change == "tensor" and group in ("params", "record"):
        unless_refused(lambda: run(STUDY, folder, quiet=True))


def test_header_of_weights_larger_than_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    with file.open("wb") as opened:
        opened.write((10**11).to_bytes(8, "little"))
        opened.truncate(2 * 10**11)  # takes no space on the disk
    with pytest.raises(InputError, match=r"the file is damaged \(its header has 100,000,000,000 bytes\)"):
        load_header(file)


@pytest.mark.filterwarnings("ignore:.*the file is damaged")
def test_pickles_are_never_loaded(valid: Path, tmp_path: Path) -> None:
    class Escape:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "escaped"),)

    content = pickle.dumps(Escape())
    weights = readers.weights_of(Path())
    for name in ("study.yaml", "results.nc", weights, weights.with_name("record.nc"), "images.npz"):
        folder = tmp_path / str(name).replace("/", "-")
        shutil.copytree(valid, folder)
        (folder / name).write_bytes(content)
        np.savez(folder / "objects.npz", images=np.array([Escape()], dtype=object))
        for use in (lambda: open_results(folder).pair(), lambda: run(STUDY, folder, quiet=True),  # noqa: B023
                    lambda: images.from_npz(folder / "images.npz"), lambda: images.from_npz(folder / "objects.npz")):  # noqa: B023  # fmt: skip
            unless_refused(use)
    assert not (tmp_path / "escaped").exists()


def test_cache_that_cannot_be_used_costs_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(cache.platformdirs, "user_cache_dir", lambda _: str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="file"):
        assert len(tetrominoes._images(tetrominoes.sample_factors()[:2], 32)) == 2


@few
@given(data=st.data())
def test_damaged_cache_is_replaced(data: st.DataObject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cache.platformdirs, "user_cache_dir", lambda _: str(tmp_path))
    factors = tetrominoes.sample_factors()[:2]
    expected = tetrominoes._images(factors, 32)
    (file,) = tmp_path.glob("images/*.safetensors")
    content = file.read_bytes()
    other = st.tuples(SHAPES, DTYPES).map(lambda each: torch.ones(each[0], dtype=each[1]))
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(damaged(content)))
    elif data.draw(st.booleans()):
        tensor_file.save(file, {"images": {"all": data.draw(other)}}, {})
    else:
        save_file({"images": expected.flip(0)}, file)
    if file.read_bytes() != content:
        with pytest.warns(UserWarning, match="is damaged"):
            assert torch.equal(tetrominoes._images(factors, 32), expected)


# Data


@few
@given(data=st.data())
def test_npz_archive_of_any_type_and_shape_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    shape = data.draw(st.lists(st.integers(0, 5), max_size=5))
    dtype = data.draw(st.sampled_from(["uint8", "float32", "float64", "int32", "complex64", "S2", "U2", "bool"]))
    pixels = np.full(shape, data.draw(st.sampled_from([0, 1, 200]))).astype(dtype)
    np.savez_compressed(file, images=pixels, labels=np.arange(3))
    unless_refused(lambda: images.from_npz(file))


def test_npz_archive_with_false_size_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 8, 8), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00v\x00" + header + b"0" * 100)
    with pytest.raises(InputError, match="declares more data"):
        images.from_npz(tmp_path / "huge.npz")


def test_idx_file_is_not_unpacked_beyond_its_expected_size(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "images.gz", "wb") as file:
        for _ in range(64):
            file.write(bytes(2**20))
    with pytest.raises(InputError, match="got 35 bytes and more"):
        _idx(tmp_path / "images.gz", (2, 3, 3), None)
