"""Users' own images: folders and .npz files."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mnist import error_line, write_files

from pyrovae.build import make_source
from pyrovae.data import vision
from pyrovae.data.images import from_folder, from_npz
from pyrovae.study import Run


def save(path: Path, mode: str = "L", size: tuple[int, int] = (5, 4), colour: Any = 200) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def test_folder_images_are_sorted_and_labelled_by_subfolder(tmp_path: Path) -> None:
    endings = vision.datasets().folder.IMG_EXTENSIONS
    for number, ending in enumerate(endings):
        save(tmp_path / "mine" / ("b" if number % 2 else "a/c") / f"{number}{ending.upper()}", colour=20 * number)
    (tmp_path / "mine" / "notes.txt").touch()
    save(tmp_path / "mine" / "b" / ".hidden.png", size=(1, 1))
    source = from_folder(tmp_path / "mine")
    images = source.images(torch.arange(source.size))
    assert (source.name, images.shape, images.dtype) == (
        "mine",
        (len(endings), 3, 4, 5),
        torch.uint8,
    )  # WebP has no grey mode
    assert source.labels is not None
    assert source.labels.tolist() == [0] * 5 + [1] * 4
    numbers = torch.tensor([0, 2, 4, 6, 8, 1, 3, 5, 7])
    assert (images.float().mean((1, 2, 3)) - 20 * numbers).abs().max() <= 3  # JPEG and WebP are lossy
    assert (source.factors, source.published) == (None, None)


def test_folder_is_grey_unless_an_image_has_colour(tmp_path: Path) -> None:
    save(tmp_path / "a.png", "1", colour=1)
    assert from_folder(tmp_path).images(torch.tensor([0])).tolist() == [[[[255] * 5] * 4]]
    save(tmp_path / "aa.png", "LA", colour=(7, 100))  # transparency is not colour
    assert from_folder(tmp_path).images(torch.tensor([1])).tolist() == [[[[7] * 5] * 4]]
    (tmp_path / "aa.png").unlink()
    save(tmp_path / "b.png", "RGB", colour=(10, 20, 30))
    source = from_folder(str(tmp_path))
    assert source.images(torch.tensor([0, 1]))[..., 0, 0].tolist() == [[255] * 3, [10, 20, 30]]
    assert source.labels is None


def _of_two_sizes(folder: Path) -> None:
    save(folder / "a" / "1.png")
    save(folder / "b" / "2.png", size=(6, 4))


def _truncated_image(folder: Path) -> None:
    save(folder / "1.png")
    path = save(folder / "2.png", size=(50, 50))
    path.write_bytes(path.read_bytes()[:70])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: None, ("expected a folder", "no such folder")),
        (lambda folder: folder.touch(), ("expected a folder", "a file")),
        (lambda folder: write_files(folder, {"notes.txt": b""}), ("expected images", ".webp", "none among 1 files")),
        (_of_two_sizes, ("one size", "5×4", "a/1.png", "6×4", "b/2.png")),
        (_truncated_image, ("2.png", "expected a readable image")),
        (lambda folder: write_files(folder, {"1.jpg": b"text"}), ("1.jpg", "expected a readable image")),
        (lambda folder: save(folder / "1.png", "I;16"), ("1.png", "8 bits", "I;16")),
    ],
)
def test_invalid_folder_gives_one_line(
    make: Callable[[Path], object], expected: tuple[str, ...], tmp_path: Path
) -> None:
    make(tmp_path / "mine")
    message = error_line(lambda: from_folder(tmp_path / "mine"))
    for each in (str(tmp_path / "mine"), *expected):
        assert each in message


@pytest.mark.parametrize(
    ("shape", "channels_first"),
    [
        ((2, 4, 5), lambda images: images[:, None]),
        ((2, 3, 4, 5), lambda images: images),
        ((2, 1, 4, 3), lambda images: images),
        ((2, 4, 5, 1), lambda images: images.transpose(0, 3, 1, 2)),
        ((2, 5, 4, 3), lambda images: images.transpose(0, 3, 1, 2)),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "float64", ">f4", "float16"])
def test_npz_images_are_channels_first(
    shape: tuple[int, ...], channels_first: Callable[[np.ndarray], np.ndarray], dtype: str, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape)
    images = values.astype(dtype) if dtype == "uint8" else (values / 255).astype(dtype)
    np.savez_compressed(tmp_path / "mine.npz", images=images)
    source = from_npz(tmp_path / "mine.npz")
    loaded = source.images(torch.arange(2))
    assert loaded.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    np.testing.assert_array_equal(loaded.numpy(), channels_first(images).astype(loaded.numpy().dtype))
    assert (source.name, source.size) == ("mine", 2)
    assert (source.labels, source.factors, source.published) == (None, None, None)


def test_npz_labels_factors_and_split_are_loaded(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "mine.npz",
        images=np.full((3, 4, 4), 255, np.uint8),
        labels=np.array([2, 0, 1], ">u2"),
        factors=np.array([[1, 7, -5], [3, 7, 5], [2, 7, 0]]),
        train=np.array([True, False, True]),
        other=np.array([{}], object),
    )
    source = from_npz(str(tmp_path / "mine.npz"))
    assert source.labels is not None
    assert source.factors is not None
    assert source.published is not None
    assert (source.labels.dtype, source.labels.tolist()) == (torch.int64, [2, 0, 1])
    assert (source.factors.dtype, source.factors.tolist()) == (torch.float32, [[0, 0, 0], [1, 0, 1], [0.5, 0, 0.5]])
    assert (source.published.dtype, source.published.tolist()) == (torch.bool, [True, False, True])


IMAGES = np.full((3, 4, 4), 255, np.uint8)
ONES = np.ones((3, 4, 4))


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"pictures": IMAGES}, ("array 'images'", "pictures")),
        ({}, ("array 'images'", "none")),
        ({"images": IMAGES[0]}, ("[N, C, H, W]", "uint8 of shape [4, 4]")),
        ({"images": np.zeros((3, 2, 4, 4), np.uint8)}, ("C of 1 or 3", "[3, 2, 4, 4]")),
        ({"images": np.ones((3, 4, 4), np.uint8)}, ("'images'", "only 0 and 1; multiply them by 255")),
        ({"images": IMAGES[:0]}, ("not empty", "[0, 4, 4]")),
        ({"images": IMAGES.astype(int)}, ("uint8", "int64")),
        ({"images": IMAGES.astype(bool)}, ("uint8", "bool")),
        ({"images": IMAGES.astype(str)}, ("uint8", "<U")),
        ({"images": ONES * 255}, ("[0, 1]", "to 255", "divide")),
        ({"images": -ONES}, ("[0, 1]", "from -1")),
        ({"images": ONES * np.nan}, ("finite", "nan")),
        ({"images": np.where(np.arange(4) == 1, np.inf, ONES)}, ("finite", "inf")),
        ({"images": IMAGES.astype(object)}, ("readable arrays", "bject")),
        ({"images": IMAGES, "labels": np.arange(4)}, ("'labels'", "N = 3", "int64 of shape [4]")),
        ({"images": IMAGES, "labels": np.ones(3)}, ("'labels'", "integers", "float64")),
        ({"images": IMAGES, "labels": np.ones((3, 1), int)}, ("'labels'", "[3, 1]")),
        ({"images": IMAGES, "labels": np.array([0, -1, 1])}, ("'labels'", "integers ≥ 0")),
        ({"images": IMAGES, "factors": np.arange(3.0)}, ("'factors'", "[N, F]", "[3]")),
        ({"images": IMAGES, "factors": np.array([[1.0], [np.inf], [0]])}, ("'factors'", "finite", "inf")),
        ({"images": IMAGES, "factors": np.ones((3, 1), bool)}, ("'factors'", "numbers", "bool")),
        ({"images": IMAGES, "train": np.ones(3, np.uint8)}, ("'train'", "bool", "uint8")),
    ],
)
def test_invalid_arrays_give_one_line(arrays: dict[str, np.ndarray], expected: tuple[str, ...], tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", allow_pickle=True, **arrays)
    message = error_line(lambda: from_npz(tmp_path / "mine.npz"))
    for each in (str(tmp_path / "mine.npz"), *expected):
        assert each in message


def _npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, images=IMAGES)
    return content.getvalue()


def _npy() -> bytes:
    content = io.BytesIO()
    np.save(content, IMAGES)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        (b"", "another type of file"),
        (b"text", "another type of file"),
        (_npy(), "another type of file"),
        (_npz()[:-30], "another type of file"),
        (_npz().replace(b"\x93NUMPY", b"\x93NUMPX"), "expected readable arrays"),
    ],
)
def test_invalid_npz_file_gives_one_line(content: bytes | None, expected: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "mine.npz").write_bytes(content)
    message = error_line(lambda: from_npz(tmp_path / "mine.npz"))
    assert f"{tmp_path / 'mine.npz'}: expected" in message
    assert expected in message


def test_encrypted_npz_file_gives_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", images=IMAGES)
    content = bytearray((tmp_path / "mine.npz").read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1
    (tmp_path / "mine.npz").write_bytes(content)
    assert "expected readable arrays, got: File 'images.npy' is encrypted" in error_line(
        lambda: from_npz(tmp_path / "mine.npz")
    )


def test_replaced_images_are_loaded_again(tmp_path: Path) -> None:
    """Even if neither the folder nor the modification time has changed."""
    run = Run(data=str(tmp_path / "mine"), split="random", batch_size=2)
    names = [tmp_path / "mine" / "inner" / f"{number}.png" for number in range(4)]
    names[0].parent.mkdir(parents=True)
    for name in names:
        Image.new("L", (3, 3), 100).save(name)
    before = names[0].stat()
    assert make_source(run).images(torch.arange(4)).float().mean() == 100
    Image.new("L", (3, 3), 200).save(tmp_path / "other.part", "png")
    os.utime(tmp_path / "other.part", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "other.part").rename(names[0])
    assert make_source(run).images(torch.arange(4)).float().mean() == 125
