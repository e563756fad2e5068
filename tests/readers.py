"""Every reader of untrusted input as a function of bytes, for fuzzers and tests.

A reader returns or raises `InputError`. Checksums are disabled here: an attacker can compute them too.
"""

import atexit
import gzip
import shutil
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from pyrovae import InputError, Study, open_results, run
from pyrovae.analysis import figures
from pyrovae.build import make_cohort_data
from pyrovae.cli import _rows, _setting
from pyrovae.data import images
from pyrovae.data.fetch import Remote
from pyrovae.data.torchvision_datasets import _idx
from pyrovae.runner.diagnose import _check_finite
from pyrovae.runner.plan import plan
from pyrovae.runner.setup import start
from pyrovae.store.checkpoint import Checkpoint
from pyrovae.store.layout import RunFolder
from pyrovae.study import key_of, parse_yaml, shipped
from pyrovae.system import tensor_file

SMALL = Study(
    name="small", depth=1, width=4, latent_size=2, train_images=32, test_images=16, batch_size=8, steps=6,
    checkpoint_every=3, measure={"images": 16, "outer": 16, "particles": 4, "reconstructions": 4, "points": 3},
).resolved()  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """
    Attributes:
        read: reads bytes, in an empty folder.
        examples: valid inputs.
    """

    read: Callable[[bytes, Path], object]
    examples: Callable[[], list[bytes]]


@cache
def valid_study() -> Path:
    """The folder of a finished study."""
    folder = Path(mkdtemp()) / "small"
    atexit.register(shutil.rmtree, folder.parent)
    with mock.patch.object(figures, "FIGURES", {"rate_distortion": figures.rate_distortion}):
        run(SMALL, folder, quiet=True)
    return folder


def use_study(study: Study) -> None:
    """Does what every command does with a study first."""
    assert Study(**parse_yaml(study.to_yaml())) == study
    plan(study)


def _study(content: bytes, folder: Path) -> None:
    (folder / "study.yaml").write_bytes(content)
    use_study(Study.load(folder / "study.yaml"))


def _studies() -> list[bytes]:
    studies = map(Study.load, shipped())
    return [study.to_yaml().encode() for study in studies if study.name in ("quick", "gap", "linear")]


def _override(content: bytes, folder: Path) -> None:
    key, value = _setting(content.decode(errors="replace"))
    use_study(Study.load("quick", **{key: value}))


def _image_rows(content: bytes, folder: Path) -> None:
    _rows(content.decode(errors="replace"))


def _weights(content: bytes, folder: Path) -> None:
    file = weights_of(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(SMALL.to_yaml(), encoding="utf-8")
    file.write_bytes(content)
    training = _training()  # before checksums are replaced, because it may read cached images
    with mock.patch.object(tensor_file, "_checksum", return_value="none"):
        with suppress(InputError):
            _check_finite(open_results(folder).pair(), torch.zeros(2, 3, 32, 32), "the run")
        training.restore(Checkpoint.load(file))
        training.save(file)


def weights_of(folder: Path) -> Path:
    """The weights of the only run of `SMALL`."""
    (run,) = SMALL.runs()
    return RunFolder.of(folder, key_of(run)).weights


@cache
def _data() -> Any:
    return make_cohort_data(SMALL.runs())


def _training() -> Any:
    (cohort,) = SMALL.cohorts()
    return start(SMALL.measure, cohort, _data())[0]


def _weight_files() -> list[bytes]:
    groups, metadata = tensor_file.load(weights_of(valid_study()))
    unchecked = valid_study().parent / "unchecked"
    with mock.patch.object(tensor_file, "_checksum", return_value="none"):
        tensor_file.save(unchecked, groups, metadata)
    return [unchecked.read_bytes()]


def _archive(content: bytes, folder: Path) -> None:
    (folder / "mine.npz").write_bytes(content)
    source = images.from_npz(folder / "mine.npz")
    source.images(torch.arange(min(source.size, 2)))


def _archives() -> list[bytes]:
    files = []
    rng = np.random.default_rng(0)
    metadata = {"labels": np.arange(3), "factors": rng.random((3, 2)), "train": np.ones(3, bool)}
    for write in (np.savez, np.savez_compressed):
        for pixels in (rng.integers(0, 256, (3, 4, 4), dtype=np.uint8), rng.random((3, 4, 4, 3))):
            write(file := BytesIO(), images=pixels, **metadata)
            files.append(file.getvalue())
    return files


def _picture(content: bytes, folder: Path) -> None:
    (folder / "one.png").write_bytes(content)
    with warnings.catch_warnings(action="ignore"):  # a damaged picture may have few grey levels
        images.from_folder(folder)


def _pictures() -> list[bytes]:
    pictures, levels = [], Image.linear_gradient("L").resize((5, 4))
    for mode in ("L", "RGBA", "P"):
        for kind in ("png", "bmp", "tiff", "webp", "ppm"):
            with suppress(OSError):
                levels.convert(mode).save(file := BytesIO(), kind)
                pictures.append(file.getvalue())
    levels.convert("RGB").save(file := BytesIO(), "jpeg")
    return [*pictures, file.getvalue()]


IDX = struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 3) + bytes(18)


def _idx_file(content: bytes, folder: Path) -> None:
    (folder / "images").write_bytes(content)
    assert _idx(folder / "images", (2, 3, 3), None).shape == (2, 3, 3)


def _packed(content: bytes, folder: Path) -> None:
    (folder / "images.gz").write_bytes(content)
    Remote(folder / "images.gz", [], "other checksum", "other checksum").is_present()


READERS: Mapping[str, Reader] = {
    "study": Reader(_study, _studies),
    "override": Reader(
        _override,
        lambda: [b"beta=[0.1,1]", b"measure.images=64", b"prior=vamp", b"pixels=dynamic", b"steps=1e3"],
    ),
    "rows": Reader(_image_rows, lambda: [b"0:3", b"0,3,17", b"5:9,1"]),
    "weights": Reader(_weights, _weight_files),
    "archive": Reader(_archive, _archives),
    "picture": Reader(_picture, _pictures),
    "idx": Reader(_idx_file, lambda: [IDX]),
    "packed": Reader(_packed, lambda: [gzip.compress(IDX)]),
}

#: Audit events that no reader may cause: starting processes, connecting, unpickling.
_FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "pickle.find_class",
)
_violations: list[str] = []
_allowed: list[Path] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    if event in _FORBIDDEN:
        _violations.append(f"{event} {arguments[:2]}")
    elif event == "open" and isinstance(arguments[0], str) and any(letter in (arguments[1] or "") for letter in "wax+"):
        path = Path(arguments[0]).absolute()
        ignored = {".hypothesis", "__pycache__"} & set(path.parts) or path.is_relative_to("/dev")
        if not ignored and not any(path.is_relative_to(folder) for folder in _allowed):
            _violations.append(f"write to {path}")


sys.addaudithook(_audit)


@contextmanager
def confined_to(folder: Path) -> Iterator[None]:
    """Raises AssertionError if the block writes outside a folder or causes a forbidden event."""
    _violations.clear()
    _allowed[:] = [folder.absolute()]
    try:
        yield
    finally:
        _allowed.clear()
    assert not _violations, _violations


def read(name: str, content: bytes, folder: Path) -> None:
    """Gives bytes to a reader, which may refuse them but must do nothing outside the folder."""
    valid_study(), _data()  # cached: they write elsewhere
    with confined_to(folder), suppress(InputError):
        READERS[name].read(content, folder)
