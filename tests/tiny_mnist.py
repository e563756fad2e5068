"""Tiny data sets in MNIST's format, and a local web server to download them from."""

import gzip
import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrovae.data import Source, vision
from pyrovae.data import torchvision_datasets as sets
from pyrovae.errors import InputError

NOWHERE = "http://127.0.0.1:9/"
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
EMNIST_NAMES = tuple(f"emnist-balanced-{name.replace('t10k', 'test')}" for name in NAMES)
ALL: Mapping[str, Callable[[], Source]] = {
    "mnist": sets.mnist,
    "fashion_mnist": sets.fashion_mnist,
    "kmnist": sets.kmnist,
    "emnist": sets.emnist,
    "omniglot": sets.omniglot,
    "cifar10": sets.cifar10,
    "svhn": sets.svhn,
}
MNIST_LIKE = {"MNIST": sets.mnist, "FashionMNIST": sets.fashion_mnist, "KMNIST": sets.kmnist}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def packed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in files.items()}


def error_line(call: Callable[[], object]) -> str:
    """The message of the InputError that a call raises, which is one line."""
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def load_all(source: Source) -> tuple[Tensor, Tensor, Tensor]:
    """All images of a data set, with its labels and its published split."""
    assert source.labels is not None
    assert source.published is not None
    assert (source.labels.dtype, source.published.dtype) == (torch.int64, torch.bool)
    assert len(source.labels) == len(source.published) == source.size
    images = source.images(torch.arange(source.size))
    assert images.dtype == torch.uint8
    return images, source.labels, source.published


@dataclass
class Tiny:
    """A data set in MNIST's format with 6 training and 4 test images."""

    images: np.ndarray
    labels: np.ndarray
    files: dict[str, bytes]

    @property
    def packed(self) -> dict[str, bytes]:
        return packed(self.files)

    def equals(self, source: Source) -> bool:
        images, labels, published = load_all(source)
        assert published.tolist() == [True] * 6 + [False] * 4
        return images.equal(torch.tensor(self.images)[:, None]) and labels.equal(torch.tensor(self.labels))


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def tiny(names: tuple[str, ...] = NAMES, seed: int = 0) -> Tiny:
    """Random images and labels, with their idx files by name."""
    draw = np.random.default_rng(seed)
    images, labels = draw.integers(0, 256, (10, 28, 28), np.uint8), draw.integers(0, 10, 10)
    arrays = (images[:6], labels[:6], images[6:], labels[6:])
    return Tiny(images, labels, {name: idx(array) for name, array in zip(names, arrays, strict=True)})


@dataclass
class Server:
    """A local web server: its files, its faults, and the paths requested so far."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    requested: list[str] = field(default_factory=list)
    missing_bytes: int = 0
    delay: float = 0


def serve(server: Server, monkeypatch: pytest.MonkeyPatch, kind: str, files: Mapping[str, bytes]) -> None:
    """Makes the server the second address of a data set; the first is unreachable."""
    server.files.update(files)
    monkeypatch.setattr(getattr(vision.datasets(), kind), "mirrors", [NOWHERE, server.url])
