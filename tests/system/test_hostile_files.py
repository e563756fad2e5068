"""Damaged and malicious files are refused in one line, never run code, and need no more memory than their size."""

import gzip
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import readers
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pyrovae import InputError, Study, open_results, run
from pyrovae.analysis import figures
from pyrovae.cli import _setting
from pyrovae.data import cache, images, tetrominoes
from pyrovae.data.torchvision_datasets import _idx
from pyrovae.runner.plan import plan
from pyrovae.store import schema
from pyrovae.store.results import study_in
from pyrovae.study import Measure, Run, files
from pyrovae.system import atomic, tensor_file

pytestmark = pytest.mark.usefixtures("few_figures")

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


@settings(few, max_examples=30)
@given(data=st.data())
@pytest.mark.parametrize("name", readers.READERS)
def test_damaged_input_is_read_or_refused(name: str, data: st.DataObject, tmp_path: Path) -> None:
    example = data.draw(st.sampled_from(readers.READERS[name].examples()))
    readers.read(name, data.draw(damaged(example)), tmp_path)


@few
@given(data=st.data())
@pytest.mark.parametrize(
    ("name", "load"),
    [("checkpoints/cohort-000.safetensors", tensor_file.load), ("results.nc", lambda file: schema.load(file, STUDY))],
)
def test_checksum_detects_damage(
    name: str, load: Callable[[Path], Any], data: st.DataObject, valid: Path, tmp_path: Path
) -> None:
    content = (valid / name).read_bytes()
    changed = data.draw(damaged(content))
    (tmp_path / "damaged").write_bytes(changed)
    if changed != content:
        with pytest.raises(InputError, match="the file is damaged"):
            load(tmp_path / "damaged")


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


# Folders


@pytest.mark.parametrize("name", ["figures", "checkpoints/more", "results.nc", "study.yaml", ".lock"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_folder_with_links_or_pipes_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "study", tmp_path / "outside"
    outside.mkdir()
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "study.yaml").write_text(STUDY.to_yaml(), encoding="utf-8")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside) if kind == "link" else os.mkfifo(folder / name)
    for use in (lambda: run(STUDY, folder, quiet=True), lambda: open_results(folder), lambda: study_in(folder)):
        with pytest.raises(InputError, match="expected only files and folders"):
            use()
    assert not list(outside.iterdir())


# Checkpoints

SHAPES = st.lists(st.integers(0, 3), max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16])


@few
@given(data=st.data())
def test_checkpoint_with_other_content_is_used_or_refused(data: st.DataObject, valid: Path, tmp_path: Path) -> None:
    """The checksum is right, and a tensor or an entry of the metadata is missing or different."""
    (file,) = valid.glob("checkpoints/*")
    groups, metadata = tensor_file.load(file)
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
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(STUDY.to_yaml(), encoding="utf-8")
    tensor_file.save(folder / "checkpoints" / file.name, groups, metadata)
    pair = unless_refused(lambda: open_results(folder).pair())
    if pair is not None:
        pair(torch.zeros(2, 3, 32, 32))
    if change == "tensor" and group in ("params", "record"):
        unless_refused(lambda: run(STUDY, folder, quiet=True))


def test_pickles_are_never_loaded(valid: Path, tmp_path: Path) -> None:
    class Escape:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "escaped"),)

    content = pickle.dumps(Escape())
    for name in ("study.yaml", "results.nc", "checkpoints/cohort-000.safetensors", "images.npz"):
        folder = tmp_path / name.replace("/", "-")
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "study.yaml").write_bytes((valid / "study.yaml").read_bytes())
        (folder / name).write_bytes(content)
        np.savez(folder / "objects.npz", images=np.array([Escape()], dtype=object))
        for use in (lambda: open_results(folder).pair(), lambda: run(STUDY, folder, quiet=True),  # noqa: B023
                    lambda: images.from_npz(folder / "images.npz"), lambda: images.from_npz(folder / "objects.npz")):  # noqa: B023  # fmt: skip
            unless_refused(use)
    assert not (tmp_path / "escaped").exists()


@few
@given(data=st.data())
def test_damaged_cache_is_replaced(data: st.DataObject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cache.platformdirs, "user_cache_dir", lambda _: str(tmp_path))
    factors = tetrominoes.sample_factors()[:2]
    expected = tetrominoes._images(factors)
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
            assert torch.equal(tetrominoes._images(factors), expected)


# Results


@settings(few, max_examples=8)
@given(data=st.data())
def test_results_with_other_content_are_shown_or_refused(data: st.DataObject, valid: Path, tmp_path: Path) -> None:
    """The checksum is right, and a variable is missing or has another name, type, shape or value."""
    tree = schema.load(valid / "results.nc", STUDY)
    group = data.draw(st.sampled_from(sorted(tree.children)))
    node = tree[group].to_dataset()
    name = data.draw(st.sampled_from(sorted(map(str, node.variables))))
    change = data.draw(st.sampled_from(["drop", "value", "type", "text", "shape", "name"]))
    if change == "drop" and name not in node.dims:
        node = node.drop_vars(name)
    elif change == "value" and node[name].dtype.kind == "f":
        node[name] = node[name] * data.draw(st.sampled_from([np.nan, np.inf, -1.0, 1e300, 0.0]))
    elif change == "type":
        other = data.draw(st.sampled_from(["int8", "uint64", "complex128", "S3"]))
        node[name] = xr.zeros_like(node[name], dtype=np.int64).astype(other)
    elif change == "text":
        node[name] = xr.full_like(node[name], data.draw(st.sampled_from(["x", "\x1b[31m", "x" * 9])), dtype=object)
    elif change == "shape" and name in node.dims:
        node = node.isel({name: slice(0, data.draw(st.integers(0, 1)))})
    elif change == "name":
        node = node.rename({name: "other"})
    tree[group] = xr.DataTree(node)
    schema.save(tree, tmp_path / "results.nc")
    if (loaded := unless_refused(lambda: schema.load(tmp_path / "results.nc", STUDY))) is not None:
        readers.show(loaded)
        figures.save(loaded, tmp_path / "figures")


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("huge", lambda file: file.create_dataset(None, (2**40,), "f8", chunks=(2**20,)), "more data than it contains"),
        ("images/cycle", lambda file: file["/"], "more data than it contains"),
        ("empty/cycle", lambda file: file.create_group("empty"), "more data than it contains"),
        ("link", lambda file: h5py.ExternalLink("/etc/passwd", "/"), "is a link"),
        ("link", lambda file: h5py.SoftLink("/runs"), "is a link"),
        ("data", lambda file: file.create_dataset(None, (10,), "u1", external=[("raw", 0, 10)]), "outside the file"),
    ],
)
def test_results_larger_than_their_file_are_refused(
    name: str, make: Callable[[h5py.File], Any], expected: str, valid: Path, tmp_path: Path
) -> None:
    file = _without_checksum(valid, tmp_path)
    with h5py.File(file, "r+") as opened:
        opened[name] = make(opened)
    file.write_bytes(atomic.with_checksum(file.read_bytes()))
    with pytest.raises(InputError, match=expected):
        schema.load(file, STUDY)


def test_results_with_repeated_references_to_one_string_are_refused(valid: Path, tmp_path: Path) -> None:
    """A thousand strings of 100 kB in a file of 300 kB."""
    file = _without_checksum(valid, tmp_path)
    with h5py.File(file, "r+") as opened:
        strings = opened.create_dataset("strings", (1000,), h5py.string_dtype())
        strings[0] = "x" * 10**5
        offset = strings.id.get_offset()
    content = bytearray(file.read_bytes())
    content[offset : offset + 16 * 1000] = content[offset : offset + 16] * 1000
    file.write_bytes(content)
    with h5py.File(file) as opened:
        assert len(opened["strings"][999]) == 10**5
    file.write_bytes(atomic.with_checksum(content))
    with pytest.raises(InputError, match="more data than it contains"):
        schema.load(file, STUDY)


def _without_checksum(valid: Path, folder: Path) -> Path:
    """A copy of the results that can be edited."""
    file = folder / "results.nc"
    file.write_bytes(atomic.without_checksum((valid / "results.nc").read_bytes()))
    return file


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("status", "\x1b[31mdone", "expected text"),
        ("diverged_at", 1j, "expected int64, got complex128"),
        ("last_loss", "none", "expected float64, got object"),
    ],
)
def test_value_of_wrong_type_is_refused(name: str, value: Any, expected: str, valid: Path, tmp_path: Path) -> None:
    tree = schema.load(valid / "results.nc", STUDY)
    runs = tree["runs"].to_dataset()
    dtype = object if isinstance(value, str) else type(value)
    tree["runs"] = xr.DataTree(runs.assign({name: xr.full_like(runs[name], value, dtype=dtype)}))
    schema.save(tree, tmp_path / "results.nc")
    with pytest.raises(InputError, match=expected):
        schema.load(tmp_path / "results.nc", STUDY)


def test_results_too_large_for_memory_are_not_opened(valid: Path, tmp_path: Path) -> None:
    text = (valid / "study.yaml").read_text(encoding="utf-8").replace("images: 16", "images: 1000000000")
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="GB of memory are free"):
        open_results(tmp_path)


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
