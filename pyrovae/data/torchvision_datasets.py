"""Published data sets with torchvision's file layout; training images come before test images.

A data set is downloaded on first use to `pyrovae.data.fetch.folder`, where files can also be put by hand. Every file
is checked before it is read.
"""

import gzip
import io
import math
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pyrovae.data import Source, vision
from pyrovae.data.fetch import Remote, fetch, folder, md5, reason
from pyrovae.errors import InputError

#: Training images, training labels, test images, test labels.
Parts = Sequence[Tensor]

SIDE = 28
_EMNIST_PARTS = ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1")
#: Numbers of training and test images of the data sets in idx format.
SIZES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "MNIST": (60_000, 10_000),
        "FashionMNIST": (60_000, 10_000),
        "KMNIST": (60_000, 10_000),
        "EMNIST": (112_800, 18_800),
    }
)
#: MD5 of the unpacked idx files, in the order of `Parts`, where known.
UNPACKED_MD5: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "MNIST": (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        "FashionMNIST": (
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
    }
)


@cache
def mnist() -> Source:
    """MNIST: 70,000 handwritten digits, ``[1, 28, 28]``.

    Raises:
        InputError: a file is damaged, or missing and cannot be downloaded. (The same holds for all data sets here.)
    """
    return _source("mnist", partial(_gzipped, "MNIST"))


@cache
def fashion_mnist() -> Source:
    """Fashion-MNIST: 70,000 pieces of clothing in 10 classes, ``[1, 28, 28]``."""
    return _source("fashion_mnist", partial(_gzipped, "FashionMNIST"))


@cache
def kmnist() -> Source:
    """Kuzushiji-MNIST: 70,000 cursive Japanese characters in 10 classes, ``[1, 28, 28]``."""
    return _source("kmnist", partial(_gzipped, "KMNIST"))


@cache
def emnist() -> Source:
    """EMNIST's balanced split: 131,600 handwritten digits and letters in 47 classes, ``[1, 28, 28]``."""
    return _source("emnist", _emnist)


@cache
def omniglot() -> Source:
    """Omniglot: 32,460 drawings of 1,623 characters, white on black, ``[1, 28, 28]``; the background set is train.

    Labels number the characters of the background set, then those of the evaluation set, each sorted by name.
    """
    return _source("omniglot", _omniglot)


@cache
def cifar10() -> Source:
    """CIFAR-10: 60,000 photographs in 10 classes, ``[3, 32, 32]``."""
    return _source("cifar10", _cifar10)


@cache
def svhn() -> Source:
    """Street View House Numbers: 99,289 cropped digits, ``[3, 32, 32]``."""
    return _source("svhn", _svhn)


def _source(name: str, read: Callable[[str], Parts]) -> Source:
    try:
        train, train_labels, test, test_labels = read(name)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{name}: expected to read and write files in {folder()}, got: {reason(error)}") from error
    images = torch.cat([train, test])
    published = torch.arange(len(images)) < len(train)
    labels = torch.cat([train_labels, test_labels]).long()
    return Source(name, len(images), lambda rows: images[rows], labels=labels, published=published)


def _gzipped(kind: str, name: str) -> Parts:
    """MNIST and similar sets: four gzipped idx files."""
    known, raw = getattr(vision.datasets(), kind), folder() / kind / "raw"
    files = [
        Remote(raw / file, [mirror + file for mirror in known.mirrors], checksum, unpacked)
        for (file, checksum), unpacked in zip(known.resources, _unpacked_md5(kind), strict=True)
    ]
    unpacked = [file for file in files if file.path.with_suffix("").exists() and not file.is_present()]
    fetch(name, [file for file in files if file not in unpacked], " (or the same unpacked)")
    return _parsed(kind, [file.path.with_suffix("") if file in unpacked else file.path for file in files])


def _emnist(name: str) -> Parts:
    """Four gzipped idx files in one archive with those of EMNIST's other splits, or unpacked."""
    known, raw = vision.datasets().EMNIST, folder() / "EMNIST" / "raw"
    parts = [f"emnist-balanced-{part}-ubyte" for part in _EMNIST_PARTS]
    archive = Remote(raw / known.url.rpartition("/")[2], [known.url], known.md5)
    if all((raw / part).exists() for part in parts) and not archive.is_present():
        train, train_labels, test, test_labels = _parsed("EMNIST", [raw / part for part in parts])
    else:
        fetch(name, [archive], f" (or, unpacked from it, {', '.join(parts)})")
        inside = zipfile.Path(archive.path, "gzip/")
        train, train_labels, test, test_labels = _parsed("EMNIST", [inside / f"{part}.gz" for part in parts])
    return train.mT, train_labels, test.mT, test_labels


def _unpacked_md5(kind: str) -> Sequence[str | None]:
    return UNPACKED_MD5.get(kind, (None,) * 4)


def _parsed(kind: str, paths: Sequence[Path | zipfile.Path]) -> Parts:
    train, test = SIZES[kind]
    shapes = ((train, SIDE, SIDE), (train,), (test, SIDE, SIDE), (test,))
    images, labels, *rest = (_idx(*each) for each in zip(paths, shapes, _unpacked_md5(kind), strict=True))
    return images[:, None], labels, rest[0][:, None], rest[1]


def _idx(path: Path | zipfile.Path, shape: tuple[int, ...], expected_md5: str | None) -> Tensor:
    """Content of an idx file, after checking its shape and, where known, its MD5."""
    header = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
    size = len(header) + math.prod(shape)
    with path.open("rb") as packed, gzip.open(packed) if path.suffix == ".gz" else nullcontext(packed) as file:
        content = file.read(size + 1)
    if len(content) != size or not content.startswith(header):
        got = f"{len(content)} bytes{' and more' if len(content) > size else ''}"
        raise _damaged(path, f"{size} bytes, an idx file of shape {list(shape)}", got)
    got = md5(io.BytesIO(content))
    if got != expected_md5 and (expected_md5 or got in chain(*UNPACKED_MD5.values())):
        raise _damaged(path, f"md5 {expected_md5 or 'of no other data set'}", f"md5 {got}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=len(header)).view(shape)


def _damaged(path: Path | zipfile.Path, expected: str, got: str) -> InputError:
    return InputError(
        f"{path}: expected {expected}, got {got}; the file is damaged or another one; delete it to download it again"
    )


def _omniglot(name: str) -> Parts:
    """Two archives with a folder per character, read without unpacking: only archives have a checksum."""
    known, root = vision.datasets().Omniglot, folder() / vision.datasets().Omniglot.folder
    files = [
        Remote(root / f"{part}.zip", [f"{known.download_url_prefix}/{part}.zip"], known.zips_md5[part])
        for part in ("images_background", "images_evaluation")
    ]
    fetch(name, files)
    (train, train_labels), (test, test_labels) = (_drawings(file.path) for file in files)
    return train, train_labels, test, test_labels + train_labels.max() + 1


def _drawings(path: Path) -> tuple[Tensor, Tensor]:
    """Drawings of an archive, labelled by the index of their folder."""
    with zipfile.ZipFile(path) as archive:
        files = sorted(file for file in archive.namelist() if file.endswith(".png"))
        images = [_drawing(archive.read(file)) for file in files]
    labels = np.unique([file.rpartition("/")[0] for file in files], return_inverse=True)[1]
    return torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(labels)


def _drawing(content: bytes) -> np.ndarray:
    # Pillow's filters widen with the reduction, so thin strokes turn grey instead of vanishing.
    image = Image.open(io.BytesIO(content)).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return 255 - np.asarray(image)


def _cifar10(name: str) -> Parts:
    """Pickled batches, unpickled only if their MD5 matches."""
    known, utils, root = vision.datasets().CIFAR10, vision.datasets().utils, folder()
    batches = [*known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])]
    wrong = [file for file, checksum in batches if not utils.check_integrity(root / known.base_folder / file, checksum)]
    with warnings.catch_warnings():
        # NumPy warns about old pickles, tarfile about the missing filter.
        warnings.simplefilter("ignore")
        if wrong:
            archive = Remote(root / known.filename, [known.url], known.tgz_md5)
            fetch(name, [archive], f" (or, undamaged in {known.base_folder}, {', '.join(wrong)})")
            utils.extract_archive(archive.path, root)
        train, test = (known(root, train=train) for train in (True, False))
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2) for part in (train, test)]
    return images[0], torch.tensor(train.targets), images[1], torch.tensor(test.targets)


def _svhn(name: str) -> Parts:
    """Two MATLAB files, read only if their MD5 matches."""
    known, root = vision.datasets().SVHN, folder()
    lines = [known.split_list[part] for part in ("train", "test")]
    fetch(name, [Remote(root / file, [url], checksum) for url, file, checksum in lines])
    train, test = (known(root, split=part) for part in ("train", "test"))
    return [torch.from_numpy(part) for part in (train.data, train.labels, test.data, test.labels)]
