"""Users' own images: folders and .npz files."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mnist import error_line, write_files

from pyrovae import InputError
from pyrovae.build import make_source
from pyrovae.data import vision
from pyrovae.data.images import from_folder, from_npz
from pyrovae.study import Run, identity


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
    with pytest.warns(UserWarning, match="expected several grey levels, got only 255"):
        assert from_folder(tmp_path).images(torch.tensor([0])).tolist() == [[[[255] * 5] * 4]]
    save(tmp_path / "aa.png", "LA", colour=(7, 100))  # transparency is not colour
    with pytest.warns(UserWarning, match="got only 158 and 255"):
        assert from_folder(tmp_path).images(torch.tensor([1])).tolist() == [[[[158] * 5] * 4]]
    (tmp_path / "aa.png").unlink()
    save(tmp_path / "b.png", "RGB", colour=(10, 20, 30))
    source = from_folder(str(tmp_path))
    assert source.images(torch.tensor([0, 1]))[..., 0, 0].tolist() == [[255] * 3, [10, 20, 30]]
    assert source.labels is None


GREY = np.array([[0, 60, 120], [180, 240, 30]], np.uint8)
#: Of 16 bits per channel, the higher 8 are kept.
DEEP = np.array([[0, 255, 256], [511, 33023, 65535]], np.uint16)
TURNED = Image.Exif()
TURNED[0x112] = 6  # to be turned clockwise


def loaded(path: Path, **settings: Any) -> list[Any]:
    """The only image of a folder."""
    (image,) = from_folder(path, **settings).images(torch.arange(1)).tolist()
    return image


def png(colour_type: int, pixels: np.ndarray, transparent: bytes = b"") -> bytes:
    """A PNG file of 16 bits per channel, ``[height, width, channels]``, which Pillow cannot write."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks[1:1] = [(b"tRNS", transparent)] if transparent else []
    packed = [
        struct.pack(">I", len(each)) + name + each + struct.pack(">I", zlib.crc32(name + each)) for name, each in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("name", ["1.png", "1.tif", "1.webp", "deep.tif", "deep.png"])
def test_image_is_turned_as_its_exif_data_say(name: str, tmp_path: Path) -> None:
    pixels = GREY.astype(np.uint16) * 256 if name.startswith("deep") else GREY
    Image.fromarray(pixels).save(tmp_path / name, exif=TURNED, lossless=True)
    assert loaded(tmp_path)[0] == [[180, 0], [240, 60], [30, 120]]


@pytest.mark.parametrize(
    ("mode", "settings", "expected"),
    [
        ("RGBA", {}, [255, 155, 0]),
        ("RGBA", {"background": "black"}, [0, 100, 255]),
        ("LA", {}, [255, 155, 0]),
        ("P", {}, [255, 9, 200]),
        ("L", {}, [0, 255, 200]),
    ],
)
def test_transparent_pixels_are_blended_with_the_background(
    mode: str, settings: dict[str, str], expected: list[int], tmp_path: Path
) -> None:
    ink = 255 if settings else 0
    image = Image.new(mode, (3, 1))
    if mode == "P":
        image.putpalette([7, 7, 7, 9, 9, 9, 200, 200, 200])
    for column, alpha in enumerate((0, 100, 255)):
        value = {"RGBA": (ink, ink, ink, alpha), "LA": (ink, alpha), "P": column, "L": 100 * column}[mode]
        image.putpixel((column, 0), value)
    image.save(tmp_path / "1.png", **({"P": {"transparency": 0}, "L": {"transparency": 100}}.get(mode, {})))
    assert loaded(tmp_path, **settings)[0] == [expected]


def test_background_is_a_setting_of_a_folder(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / f"{number}.png", "LA", colour=(80 * number, 100))
    run = Run(data=f"{tmp_path}/", split="random", batch_size=2)
    black = run.model_copy(update={"background": "black"})
    assert [int(make_source(each).images(torch.arange(1))[0, 0, 0, 0]) for each in (run, black)] == [155, 0]
    assert identity(run).keys() == {"batch_size", "data"}
    assert identity(black)["data.background"] == "black"
    assert "data.background: input should be 'white' or 'black', got 'red'" in error_line(
        lambda: make_source(run.model_copy(update={"background": "red"}))
    )


def test_higher_8_of_16_bits_are_kept(tmp_path: Path) -> None:
    expected = [[0, 0, 1], [1, 128, 255]]
    for name in ("grey.png", "grey.tif"):
        (tmp_path / name).mkdir()
        Image.fromarray(DEEP).save(tmp_path / name / name)
        assert loaded(tmp_path / name) == [expected]
    header = b"P5 3 2 65535\n"
    write_files(tmp_path / "pgm", {"1.pgm": header + DEEP.astype(">u2").tobytes()})
    assert loaded(tmp_path / "pgm") == [expected]
    write_files(tmp_path / "rgb", {"1.png": png(2, np.stack([DEEP, DEEP, 65535 - DEEP], -1))})
    assert loaded(tmp_path / "rgb") == [expected, expected, [[255, 255, 254], [254, 127, 0]]]
    write_files(tmp_path / "rgba", {"1.png": png(6, np.stack([DEEP, DEEP, DEEP, np.full_like(DEEP, 65535)], -1))})
    assert loaded(tmp_path / "rgba") == [expected] * 3


def test_transparent_value_of_16_bits_is_blended(tmp_path: Path) -> None:
    value = struct.pack(">H", 33023)
    write_files(tmp_path / "grey", {"1.png": png(0, DEEP[..., None], value)})
    assert loaded(tmp_path / "grey", background="white") == [[[0, 0, 1], [1, 255, 255]]]
    write_files(tmp_path / "rgb", {"1.png": png(2, np.stack([DEEP] * 3, -1), 3 * value)})
    assert loaded(tmp_path / "rgb", background="black") == [[[0, 0, 1], [1, 0, 255]]] * 3


def test_file_of_several_frames_is_refused(tmp_path: Path) -> None:
    first, second = (Image.new("L", (4, 4), grey) for grey in (0, 200))
    for number in range(2):
        first.save(tmp_path / f"{number}.tiff", save_all=True, append_images=[second])
    with pytest.raises(InputError, match=r"0\.tiff: expected one image, got 2 frames"):
        make_source(Run(data=str(tmp_path)))


def test_labels_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "2"):
        (tmp_path / name).mkdir()
        Image.fromarray(GREY + int(name)).save(tmp_path / name / "1.png")
    source = from_folder(tmp_path)
    assert source.images(torch.arange(3))[:, 0, 0, 0].tolist() == [10, 2, 9]
    assert source.labels is not None
    assert source.labels.tolist() == [2, 0, 1]
    assert source.classes == ("2", "9", "10")


def test_folders_named_by_any_numbers_are_labels_in_their_order(tmp_path: Path) -> None:
    for level, name in enumerate(("0.5", "-1", "0.25", "10", "-2"), 100):
        save(tmp_path / name / "1.png", colour=level)
    assert from_folder(tmp_path).classes == ("-2", "-1", "0.25", "0.5", "10")


def test_labels_of_a_mask_are_announced(tmp_path: Path) -> None:
    Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)).save(tmp_path / "1.png")
    with pytest.warns(UserWarning, match="none above 19; are these labels of a mask"):
        from_folder(tmp_path)


def test_images_of_other_types_are_announced(tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "1.png")
    write_files(tmp_path, {"2.gif": b"", "3.HEIC": b"", "notes.txt": b""})
    with pytest.warns(UserWarning, match=r"got 2 of other types, such as 2\.gif, which are left out"):
        assert from_folder(tmp_path).size == 1


def test_file_is_one_image_whatever_links_lead_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for name in ("b", "c"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(GREY).save(folder / name / f"{name}.png")
    Image.fromarray(GREY).save(tmp_path / "other.png")
    for link, target in {"a": "c", "b/again": "..", "b/self": ".", "b/a.png": "../c/c.png"}.items():
        (folder / link).symlink_to(target)
    (folder / "b" / "d.png").symlink_to(tmp_path / "other.png")
    (tmp_path / "linked").symlink_to(folder)
    (folder / "b" / "e.png").hardlink_to(folder / "b" / "b.png")
    for each in (folder, tmp_path / "linked"):
        source = from_folder(each)
        assert (source.size, source.classes) == (3, ("b", "c"))
        assert source.labels is not None
        assert source.labels.tolist() == [0, 0, 1]


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
        (
            lambda folder: [save(folder / name / "1.png") for name in ("a", "b\udce9")],
            ("mine/b", "expected the name of a folder in UTF-8"),
        ),
        (_of_two_sizes, ("one size", "5×4", "a/1.png", "6×4", "b/2.png")),
        (_truncated_image, ("2.png", "expected a readable image")),
        (
            lambda folder: write_files(folder, {"1.jpg": b"text"}),
            ("1.jpg", "expected an image (BMP, JPEG, PNG", "another type of file"),
        ),
        (lambda folder: save(folder / "1.tif", "F"), ("1.tif", "8 or 16 bits", "mode F")),
        (lambda folder: save(folder / "1.tif", "I"), ("1.tif", "8 or 16 bits", "mode I")),
        (lambda folder: save(folder / "1.png", colour=1), ("from 0 to 255", "got only 1; multiply masks by 255")),
        (
            lambda folder: save(folder / "1.png", "1", size=(8200, 8200)),
            ("1.png", "at most 67,108,864 pixels, got 8,200×8,200"),
        ),
        (
            lambda folder: write_files(folder, {"1.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}),
            ("1.png", "another type of file"),
        ),
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
        ({"images": ONES * np.nan}, ("finite", "got nan in 3 of 3 images, first in images[0]; replace")),
        ({"images": ONES * 1e300}, ("finite float32", "got 1e+300 in 3 of 3 images, first in images[0]; replace")),
        (
            {"images": np.where(np.arange(3)[:, None, None] == 1, np.inf, ONES)},
            ("finite", "got inf in 1 of 3 images, first in images[1]"),
        ),
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
        Image.fromarray(
            np.full((3, 3), 100, np.uint8) + np.eye(3, dtype=np.uint8) - np.eye(3, k=1, dtype=np.uint8)
        ).save(name)
    before = names[0].stat()
    assert make_source(run).images(torch.arange(4))[0, 0, 2, 0] == 100
    Image.new("L", (3, 3), 200).save(tmp_path / "other.part", "png")
    os.utime(tmp_path / "other.part", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "other.part").rename(names[0])
    assert make_source(run).images(torch.arange(4))[0, 0, 2, 0] == 200
