"""A user's own images: a folder of image files, or an ``.npz`` file of arrays."""

import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import glob
from math import prod
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pyrovae.data import Source, vision
from pyrovae.data.fetch import reason
from pyrovae.errors import InputError
from pyrovae.system.memory import check_memory

_CHANNELS = (1, 3)
#: Optional arrays of an ``.npz`` file: NumPy kinds, number of dimensions, and a description for messages.
_COLUMNS: Mapping[str, tuple[str, int, str]] = MappingProxyType(
    {
        "labels": ("iu", 1, "integers [N]"),
        "factors": ("iuf", 2, "numbers [N, F]"),
        "train": ("b", 1, "bool [N]"),
    }
)


def from_folder(path: str | Path) -> Source:
    """All images in a folder and its subfolders, sorted by path.

    If all images are grey, they are loaded as ``[1, H, W]``, otherwise as RGB, ``[3, H, W]``. Transparency is dropped
    and hidden files are skipped. If there is more than one folder with images, a label is the index of the image's
    folder, sorted by name.

    Raises:
        InputError: there is no such folder, or it has no images; or an image cannot be read, has more than 8 bits per
            channel, or another size than the first.
    """
    folder = Path(path)
    files = _image_files(folder)
    grey = [_is_grey(file) for file in files]
    mode = "L" if all(grey) else "RGB"
    first = _pixels(files[0], mode)
    check_memory(len(files) * first.numel(), f"{folder}: the images")
    images = first.new_empty(len(files), *first.shape)
    for image, file in zip(images, files, strict=True):
        pixels = _pixels(file, mode)
        if pixels.shape != first.shape:
            raise InputError(
                f"{folder}: expected images of one size, got {_size(first)} in {files[0]} and {_size(pixels)} in {file}"
            )
        image.copy_(pixels)
    return Source(folder.resolve().name, len(images), lambda rows: images[rows], labels=_folder_labels(files))


def _image_files(folder: Path) -> list[Path]:
    endings = vision.datasets().folder.IMG_EXTENSIONS
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a folder of images, got {'a file' if folder.exists() else 'no such folder'}"
        )
    files = [folder / name for name in sorted(glob("**", root_dir=folder, recursive=True)) if (folder / name).is_file()]
    images = [file for file in files if file.suffix.lower() in endings]
    if not images:
        raise InputError(f"{folder}: expected images ({', '.join(endings)}), got none among {len(files)} files")
    return images


def _is_grey(file: Path) -> bool:
    with _opened(file) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"{file}: expected 8 bits per channel, got more (mode {image.mode}); convert it")
        return image.mode in ("1", "L", "LA")


def _pixels(file: Path, mode: str) -> Tensor:
    """The image as uint8 ``[C, H, W]``."""
    with _opened(file) as image:
        check_memory(8 * image.width * image.height, f"{file}: the image")  # as RGBA and as an array
        pixels = torch.from_numpy(np.array(image.convert(mode)))
    return pixels[None] if mode == "L" else pixels.permute(2, 0, 1)


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")
            yield image
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise many types of errors for damaged files
        raise InputError(f"{file}: expected a readable image, got: {reason(error)}") from error


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[2]}×{pixels.shape[1]}"


def _folder_labels(files: list[Path]) -> Tensor | None:
    folders, labels = np.unique([str(file.parent) for file in files], return_inverse=True)
    return torch.from_numpy(labels) if len(folders) > 1 else None


def from_npz(path: str | Path) -> Source:
    """Images, with optional labels, factors and split, from an ``.npz`` file written by `numpy.savez`.

    - ``images``: ``[N, H, W]``, ``[N, C, H, W]`` or ``[N, H, W, C]`` with C of 1 or 3 (channels first where ambiguous);
      uint8, or floats in [0, 1], which are converted to float32.
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
        images = _in_range(path, images).astype(np.float32)
    if images.dtype not in (np.uint8, np.float32):
        raise _wrong(path, "images", "uint8, or floats in [0, 1]", array)
    if images.dtype == np.uint8 and images.max() <= 1:
        raise InputError(f"{path}: 'images': expected uint8 from 0 to 255, got only 0 and 1; multiply them by 255")
    return torch.from_numpy(np.ascontiguousarray(images))


def _in_range(path: Path, images: np.ndarray) -> np.ndarray:
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise InputError(
            f"{path}: 'images': expected finite floats in [0, 1], got values from {low:g} to {high:g}; "
            "divide them by their largest possible value, or store them as uint8"
        )
    return images


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
