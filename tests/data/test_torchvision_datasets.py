"""Data sets with torchvision's file layout, from small files in their formats."""

import io
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from tiny_mnist import (
    EMNIST_NAMES,
    NOWHERE,
    error_line,
    load_all,
    md5,
    tiny,
    write_files,
)

from pyrovae.data import torchvision_datasets as sets
from pyrovae.data import vision

pytestmark = pytest.mark.usefixtures("root")


@pytest.mark.parametrize("form", ["archive", "unpacked", "both"])
def test_emnist_images_are_upright(form: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, content = tiny(EMNIST_NAMES), io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, each in known.packed.items():
            archive.writestr(f"gzip/{name}", each)
        archive.writestr("gzip/emnist-letters-train-images-idx3-ubyte.gz", b"another split")
    monkeypatch.setattr(sets, "SIZES", {"EMNIST": (6, 4)})
    monkeypatch.setattr(vision.datasets().EMNIST, "md5", md5(content.getvalue()))
    if form != "unpacked":
        write_files(root / "EMNIST" / "raw", {"gzip.zip": content.getvalue()})
    if form != "archive":
        write_files(root / "EMNIST" / "raw", dict(list(known.files.items())[1:]))
        assert form == "both" or "expected gzip.zip" in error_line(sets.emnist)
        write_files(
            root / "EMNIST" / "raw", {EMNIST_NAMES[0]: known.files[EMNIST_NAMES[0]] if form == "unpacked" else b"half"}
        )
    known.images = known.images.transpose(0, 2, 1)
    assert known.equals(sets.emnist())


def drawing(row: int) -> bytes:
    """A black stroke of three rows on white, one bit per pixel."""
    pixels, content = np.ones((105, 105), bool), io.BytesIO()
    pixels[row : row + 3] = False
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


OMNIGLOT = {
    "images_background": {"Latin/01/02.png": 60, "Greek/02/01.png": 30, "Greek/01/01.png": 0},
    "images_evaluation": {"Aurek/02/01.png": 99, "Aurek/01/01.png": 90, "Aurek/01/02.png": 93},
}


def test_omniglot_is_white_on_black_with_distinct_labels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checksums = {}
    for part, drawings in OMNIGLOT.items():
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.mkdir(part)
            for name, row in drawings.items():
                archive.writestr(f"{part}/{name}", drawing(row))
        write_files(root / "omniglot-py", {f"{part}.zip": content.getvalue(), f"{part}/half/unpacked.png": b""})
        checksums[part] = md5(content.getvalue())
    monkeypatch.setattr(vision.datasets().Omniglot, "zips_md5", checksums)
    images, labels, published = load_all(sets.omniglot())
    assert images.shape == (6, 1, 28, 28)
    assert labels.tolist() == [0, 1, 2, 3, 3, 4]
    assert published.tolist() == [True] * 3 + [False] * 3
    rows = torch.tensor([0, 30, 60, 90, 93, 99])
    ink = images[:, 0, :, 0].float()
    centre = (ink * torch.arange(28)).sum(1) / ink.sum(1)
    assert ((centre - (rows + 1) * 28 / 105).abs() < 0.6).all()
    # Downsampling conserves the ink of a stroke.
    torch.testing.assert_close(ink[1:5].sum(1), torch.full((4,), 255 * 3 * 28 / 105), rtol=0.02, atol=0)


class _Outdated:
    """Warns when unpickled, as some versions of NumPy do for old arrays."""

    def __reduce__(self) -> tuple[Any, ...]:
        return warnings.warn, ("outdated", UserWarning)


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Batches of two images each, followed by their archive."""
    known, files = vision.datasets().CIFAR10, {}
    names = [name for name, _ in known.train_list + known.test_list]
    for number, name in enumerate(names):
        data = np.arange(number, number + 2 * 3072).reshape(2, 3072).astype(np.uint8)
        entry = {"data": data, "labels": [number, 9], "batch_label": _Outdated()}
        files[f"{known.base_folder}/{name}"] = pickle.dumps(entry, protocol=2)
    files[f"{known.base_folder}/batches.meta"] = pickle.dumps({"label_names": ["cat"] * 10}, protocol=2)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, each in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(each)
            archive.addfile(member, io.BytesIO(each))
    checksums = [[Path(name).name, md5(each)] for name, each in files.items()]
    monkeypatch.setattr(known, "train_list", checksums[:5])
    monkeypatch.setattr(known, "test_list", checksums[5:6])
    monkeypatch.setattr(known, "meta", {"filename": "batches.meta", "key": "label_names", "md5": checksums[6][1]})
    monkeypatch.setattr(known, "tgz_md5", md5(content.getvalue()))
    return files | {known.filename: content.getvalue()}


def check_cifar10() -> None:
    images, labels, published = load_all(sets.cifar10())
    assert images.shape == (12, 3, 32, 32)
    assert images[2].flatten().tolist() == [value % 256 for value in range(1, 3073)]
    assert labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert published.tolist() == [True] * 10 + [False] * 2


def test_cifar10_loads_from_archive_or_batches(root: Path, cifar10: dict[str, bytes]) -> None:
    archive = vision.datasets().CIFAR10.filename
    write_files(root, {archive: cifar10[archive]})
    check_cifar10()
    (root / archive).unlink()
    sets.cifar10.cache_clear()
    check_cifar10()


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_damaged_batch_is_replaced_from_archive_or_named(name: str, root: Path, cifar10: dict[str, bytes]) -> None:
    *batches, archive = cifar10
    write_files(root, {each: cifar10[each] for each in batches})
    damaged = root / vision.datasets().CIFAR10.base_folder / name
    damaged.write_bytes(damaged.read_bytes()[:30])
    message = error_line(sets.cifar10)
    assert f"{archive} (or, undamaged in cifar-10-batches-py, {name}) in {root}" in message
    write_files(root, {archive: cifar10[archive][:200]})
    assert f"{archive} (the present file has md5" in error_line(sets.cifar10)
    write_files(root, {archive: cifar10[archive]})
    check_cifar10()


def test_svhn_labels_the_digit_zero_as_0(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, lines, arrays = np.random.default_rng(0), {}, []
    for part, digits in (("train", [1, 10, 3]), ("test", [10, 2])):
        file, content = f"{part}_32x32.mat", io.BytesIO()
        arrays.append(draw.integers(0, 256, (32, 32, 3, len(digits)), np.uint8))
        scipy.io.savemat(content, {"X": arrays[-1], "y": np.array(digits, np.uint8)[:, None]})
        lines[part] = [NOWHERE + file, file, md5(content.getvalue())]
        write_files(root, {file: content.getvalue()})
    monkeypatch.setattr(vision.datasets().SVHN, "split_list", lines | {"extra": ["", "", ""]})
    images, labels, published = load_all(sets.svhn())
    assert images.equal(torch.tensor(np.concatenate(arrays, 3)).permute(3, 2, 0, 1))
    assert labels.tolist() == [1, 0, 3, 0, 2]
    assert published.tolist() == [True] * 3 + [False] * 2
