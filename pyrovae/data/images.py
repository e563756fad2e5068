"""A user's own images: a folder of image files, or an ``.npz`` file of arrays."""

import mimetypes
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from pyrovae.data import Source, vision
from pyrovae.data.fetch import reason
from pyrovae.errors import InputError
from pyrovae.parts import FILES
from pyrovae.system.atomic import check_name
from pyrovae.system.memory import check_memory

if TYPE_CHECKING:
    from PIL import Image

_CHANNELS = (1, 3)
#: What transparent pixels are blended with.
Background = Literal["white", "black"]
#: Formats that are read, whatever the ending of a file: Pillow has readers that start other programs.
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: A set of images without a lighter pixel than this is probably a mask.
_DARK = 32
#: Most pixels of an image.
_MOST_PIXELS = 2**26
#: Optional arrays of an ``.npz`` file: NumPy kinds, number of dimensions, and a description for messages.
_COLUMNS: Mapping[str, tuple[str, int, str]] = MappingProxyType(
    {
        "labels": ("iu", 1, "integers [N]"),
        "factors": ("iuf", 2, "numbers [N, F]"),
        "train": ("b", 1, "bool [N]"),
    }
)


def from_folder(path: str | Path, background: Background = "white") -> Source:
    """All images in a folder and its subfolders, sorted by path.

    If all images are grey, they are loaded as ``[1, H, W]``, otherwise as RGB, ``[3, H, W]``. Each is turned as its
    EXIF data say, transparent pixels are blended with the background, and of 16 bits per channel the higher 8 are kept.
    Hidden files are skipped, links are followed, and a file to which several lead is one image. If there is more than
    one folder with images, a label is the index of the image's folder: by name, with numbers in their order.

    Raises:
        InputError: there is no such folder, or it has no images; or an image cannot be read, has more than 16 bits per
            channel or too many pixels, or another size than the first; or all pixels are 0 or 1.
    """
    folder = Path(path)
    files = image_files(folder)
    grey = [_is_grey(file) for file in files]
    mode = "L" if all(grey) else "RGB"
    first = _pixels(files[0], mode, background)
    check_memory(len(files) * first.numel(), f"{folder}: the images")
    images = first.new_empty(len(files), *first.shape)
    counts = torch.zeros(256, dtype=torch.int64)
    for image, file in zip(images, files, strict=True):
        pixels = _pixels(file, mode, background)
        counts += pixels.flatten().bincount(minlength=256)
        if pixels.shape != first.shape:
            raise InputError(
                f"{folder}: expected images of one size, got {_size(first)} in {files[0]} and {_size(pixels)} in {file}"
            )
        image.copy_(pixels)
    _check_levels(folder, counts.nonzero().flatten().tolist())
    labels, classes = _folder_labels(folder, files)
    return Source(folder.resolve().name, len(images), lambda rows: images[rows], labels=labels, classes=classes)


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and its subfolders, sorted by path.

    Raises:
        InputError: there is no such folder, it has no images, or the name of a subfolder is not UTF-8.
    """
    endings = vision.datasets().folder.IMG_EXTENSIONS
    if not folder.is_dir():
        got = f"a file, which would have to end in {', '.join(FILES)}" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: expected a folder of images, got {got}")
    files = sorted(file for file in _files(folder) if file.is_file())
    images = [file for file in files if file.suffix.lower() in endings]
    others = [file for file in set(files).difference(images) if _is_called_image(file)]
    if images and others:
        warnings.warn(
            f"{folder}: expected images ({', '.join(endings)}), got {len(others):,} of other types, such as "
            f"{min(others).name}, which are left out; convert them",
            stacklevel=2,
        )
    if not images:
        raise InputError(f"{folder}: expected images ({', '.join(endings)}), got none among {len(files)} files")
    for place in {place for file in images for place in file.relative_to(folder).parents}:
        check_name(folder / place)
    unique = dict[tuple[int, int], Path]()
    for file in sorted(images, key=Path.is_symlink):  # a link counts only where nothing else leads to the file
        found = file.stat()
        unique.setdefault((found.st_dev, found.st_ino), file)
    return sorted(unique.values())


def _is_called_image(file: Path) -> bool:
    kind, _ = mimetypes.guess_type(file.name, strict=False)
    return kind is not None and kind.startswith("image/")


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder and its subfolders, each of which is visited once, whatever links lead to it."""
    visited, left = set(), [folder]
    while left:
        for place, folders, names in os.walk(left.pop(0)):
            real = os.path.realpath(place)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            left += [Path(place, name) for name in folders if Path(place, name).is_symlink()]
            yield from (Path(place, name) for name in names if not name.startswith("."))


def _is_grey(file: Path) -> bool:
    with _opened(file) as image:
        if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
            raise InputError(f"{file}: expected 8 or 16 bits per channel, got more (mode {image.mode}); convert it")
        return image.mode.startswith("I") or image.mode in ("1", "L", "LA")


def _pixels(file: Path, mode: str, background: Background) -> Tensor:
    """The image as uint8 ``[C, H, W]``."""
    from PIL import Image, ImageOps

    with _opened(file) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise InputError(f"{file}: expected at most {_MOST_PIXELS:,} pixels, got {image.width:,}×{image.height:,}")
        check_memory(16 * image.width * image.height, f"{file}: the image")  # as RGBA, blended, and as an array
        upright = ImageOps.exif_transpose(image)
        transparent = upright.info.get("transparency")
        if upright.mode.startswith("I"):  # 16 bits, which Pillow would clip
            values = np.array(upright)
            upright = Image.fromarray((values >> 8).astype(np.uint8))
            if transparent is not None:
                upright.putalpha(Image.fromarray(np.uint8(255) * (values != transparent)))
        elif isinstance(transparent, tuple) and max(transparent) > 255:  # 16 bits, of which Pillow keeps the higher 8
            upright.info["transparency"] = tuple(channel >> 8 for channel in transparent)
        if upright.has_transparency_data:
            canvas = Image.new("RGBA", upright.size, background)
            upright = Image.alpha_composite(canvas, upright.convert("RGBA"))
        pixels = torch.from_numpy(np.array(upright.convert(mode)))
    return pixels[None] if mode == "L" else pixels.permute(2, 0, 1)


@contextmanager
def _opened(file: Path) -> Iterator["Image.Image"]:
    from PIL import Image, UnidentifiedImageError  # Pillow is only needed for a user's images

    try:
        # Not by its path: Pillow would map an uncompressed TIFF into memory, and then turn it wrongly.
        with (
            warnings.catch_warnings(action="ignore"),
            file.open("rb") as opened,
            Image.open(opened, formats=_FORMATS) as image,
        ):
            if image.format in ("PNG", "TIFF", "WEBP") and (frames := getattr(image, "n_frames", 1)) > 1:
                raise InputError(f"{file}: expected one image, got {frames} frames; save each to a file of its own")
            yield image
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{file}: expected an image ({', '.join(_FORMATS)}), got another type of file") from None
    except Exception as error:  # Pillow's readers raise many types of errors for damaged files
        raise InputError(f"{file}: expected a readable image, got: {reason(error)}") from error


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[2]}×{pixels.shape[1]}"


def _folder_labels(folder: Path, files: list[Path]) -> tuple[Tensor, tuple[str, ...]] | tuple[None, None]:
    """The label of each image, and the folder of each label; None if there is only one folder."""
    places = [file.parent.relative_to(folder).as_posix() for file in files]
    classes = sorted(set(places), key=_natural)
    with suppress(ValueError):  # unless all are numbers, perhaps negative or decimal
        classes.sort(key=float)
    if len(classes) == 1:
        return None, None
    return torch.tensor([classes.index(place) for place in places]), tuple(classes)


def _natural(name: str) -> tuple[list[str | int], str]:
    """A key by which texts are sorted as people do: 9 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def _check_levels(folder: Path, levels: list[int]) -> None:
    """Raises InputError if pixels are a mask of 0 and 1, and warns of other masks and of hardly any grey levels."""
    found = " and ".join(map(str, levels))
    if levels[-1] <= 1:
        raise InputError(f"{folder}: expected pixels from 0 to 255, got only {found}; multiply masks by 255")
    if len(levels) < 3:
        warnings.warn(
            f"{folder}: expected several grey levels, got only {found}; unless they are binary, look at them",
            stacklevel=3,
        )
    elif levels[-1] < _DARK:
        warnings.warn(
            f"{folder}: expected pixels from 0 to 255, got none above {levels[-1]}; are these labels of a mask?",
            stacklevel=3,
        )


def from_npz(path: str | Path) -> Source:
    """Images, with optional labels, factors and split, from an ``.npz`` file written by `numpy.savez`.

    - ``images``: ``[N, H, W]``, ``[N, C, H, W]`` or ``[N, H, W, C]`` with C of 1 or 3 (channels first where ambiguous);
      uint8, or floats, which are converted to float32 and used unscaled.
    - ``labels`` (optional): integers ≥ 0, ``[N]``.
    - ``factors`` (optional): numbers ``[N, F]``; each column is scaled to [0, 1].
    - ``train`` (optional): bool ``[N]``, whether an image is in the published training set.

    Raises:
        InputError: there is no such file, or its arrays are invalid.

    Example:
        >>> import numpy as np, torch
        >>> np.savez(tmp_path / "dots.npz", images=np.full((5, 8, 9, 3), 255, "uint8"))
        >>> source = from_npz(tmp_path / "dots.npz")
        >>> source.size, source.images(torch.arange(2)).shape
        (5, torch.Size([2, 3, 8, 9]))
    """
    path = Path(path)
    arrays = _arrays(path)
    images = _images(path, arrays.pop("images"))
    columns = {name: _column(path, name, array, len(images)) for name, array in arrays.items()}
    return Source(
        path.stem,
        len(images),
        lambda rows: images[rows],
        factors=columns.get("factors"),
        labels=columns.get("labels"),
        published=columns.get("train"),
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file() or not zipfile.is_zipfile(path):
        got = "another type of file, or a damaged one" if path.exists() else "no such file"
        raise InputError(f"{path}: expected an .npz file written by numpy.savez, got {got}")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            members, names = file.zip.namelist(), ", ".join(file) or "none"
            arrays = {name: _array(path, file.zip, name) for name in ("images", *_COLUMNS) if f"{name}.npy" in members}
    # zipfile raises RuntimeError for encrypted members and unknown compression methods.
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: expected readable arrays, got: {reason(error)}") from error
    if "images" not in arrays:
        raise InputError(f"{path}: expected an array 'images', got the arrays {names}")
    return arrays


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Reads an array after checking its size against the free memory."""
    packed = archive.getinfo(f"{name}.npy")
    check_memory(2 * packed.file_size, f"{path}: '{name}'")
    with archive.open(packed.filename) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(file)
    if prod(shape) * kind.itemsize > packed.file_size and not kind.hasobject:
        raise ValueError(f"'{name}' declares more data than it has")
    with archive.open(packed.filename) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _images(path: Path, array: np.ndarray) -> Tensor:
    """The array as images ``[N, C, H, W]``, uint8 or float32."""
    images = array[:, None] if array.ndim == 3 else array
    if images.ndim == 4 and images.shape[1] not in _CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in _CHANNELS or images.size == 0:
        raise _wrong(path, "images", "[N, H, W], [N, C, H, W] or [N, H, W, C] with C of 1 or 3, not empty", array)
    if images.dtype.kind == "f":
        images = _finite(path, images)
    if images.dtype not in (np.uint8, np.float32):
        raise _wrong(path, "images", "uint8 or floats", array)
    if images.dtype == np.uint8 and images.max() <= 1:
        raise InputError(f"{path}: 'images': expected uint8 from 0 to 255, got only 0 and 1; multiply them by 255")
    return torch.from_numpy(np.ascontiguousarray(images))


def _finite(path: Path, images: np.ndarray) -> np.ndarray:
    """Floats as float32."""
    with np.errstate(over="ignore"):
        converted = images.astype(np.float32)
    finite = np.isfinite(converted)
    if not finite.all():
        wrong = ~finite.all(axis=(1, 2, 3))
        raise InputError(
            f"{path}: 'images': expected finite float32 numbers, got {images[~finite][0]} in {wrong.sum():,} of "
            f"{len(images):,} images, first in images[{wrong.argmax()}]; replace these values, or leave the images out"
        )
    return converted


def _column(path: Path, name: str, array: np.ndarray, size: int) -> Tensor:
    """An optional array, checked and converted to the type that `Source` expects."""
    kinds, dimensions, expected = _COLUMNS[name]
    if array.dtype.kind not in kinds or array.ndim != dimensions or len(array) != size:
        raise _wrong(path, name, f"{expected} for N = {size} images", array)
    if name == "factors":
        return _scaled(path, array.astype(np.float64))
    if name == "labels" and not 0 <= array.min() <= array.max() <= np.iinfo(np.int64).max:
        raise _wrong(path, name, "integers ≥ 0", array)
    return torch.from_numpy(array.astype(bool if name == "train" else np.int64))


def _scaled(path: Path, factors: np.ndarray) -> Tensor:
    """Scales each column to [0, 1]; a constant column becomes 0."""
    if not np.isfinite(factors).all():
        raise InputError(f"{path}: 'factors': expected finite numbers, got {factors[~np.isfinite(factors)][0]}")
    spread = np.ptp(factors, axis=0)
    return torch.from_numpy((factors - factors.min(0)) / np.where(spread == 0, 1, spread)).float()


def _wrong(path: Path, name: str, expected: str, array: np.ndarray) -> InputError:
    return InputError(f"{path}: '{name}': expected {expected}, got {array.dtype} of shape {list(array.shape)}")
