"""Downloaded data sets and users' own images, including damaged files and failing downloads."""

import gzip
import hashlib
import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch import Tensor

from pyrovae.build import make_source
from pyrovae.data import Source, fetch, vision
from pyrovae.data import torchvision_datasets as sets
from pyrovae.data.images import from_folder, from_npz
from pyrovae.errors import InputError
from pyrovae.study import Run

pytestmark = pytest.mark.usefixtures("few_figures")

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


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of data sets; all download addresses are unreachable."""
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "data"))
    known = vision.datasets()
    for kind in MNIST_LIKE:
        monkeypatch.setattr(getattr(known, kind), "mirrors", [NOWHERE])
    monkeypatch.setattr(known.EMNIST, "url", f"{NOWHERE}gzip.zip")
    monkeypatch.setattr(known.Omniglot, "download_url_prefix", NOWHERE.rstrip("/"))
    monkeypatch.setattr(known.CIFAR10, "url", f"{NOWHERE}{known.CIFAR10.filename}")
    lines = {part: [NOWHERE + line[1], *line[1:]] for part, line in known.SVHN.split_list.items()}
    monkeypatch.setattr(known.SVHN, "split_list", lines)
    yield tmp_path / "data"
    for data_set in ALL.values():
        data_set.cache_clear()  # type: ignore[attr-defined]


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def packed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in files.items()}


def line(call: Callable[[], object]) -> str:
    """The message of the InputError that a call raises, which is one line."""
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def everything(source: Source) -> tuple[Tensor, Tensor, Tensor]:
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
        images, labels, published = everything(source)
        assert published.tolist() == [True] * 6 + [False] * 4
        return images.equal(torch.tensor(self.images)[:, None]) and labels.equal(torch.tensor(self.labels))


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def tiny(names: tuple[str, ...] = NAMES, seed: int = 0) -> Tiny:
    draw = np.random.default_rng(seed)
    images, labels = draw.integers(0, 256, (10, 28, 28), np.uint8), draw.integers(0, 10, 10)
    arrays = (images[:6], labels[:6], images[6:], labels[6:])
    return Tiny(images, labels, {name: idx(array) for name, array in zip(names, arrays, strict=True)})


@pytest.fixture
def mnist_like(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tiny]:
    """Tiny MNIST, Fashion-MNIST and KMNIST; for KMNIST, only the MD5 of the archives is known."""
    known = {kind: tiny(seed=seed) for seed, kind in enumerate(MNIST_LIKE)}
    checksums = {kind: tuple(map(md5, known[kind].files.values())) for kind in ("MNIST", "FashionMNIST")}
    monkeypatch.setattr(sets, "SIZES", dict.fromkeys(MNIST_LIKE, (6, 4)))
    monkeypatch.setattr(sets, "UNPACKED_MD5", checksums)
    for kind, each in known.items():
        resources = [(name, md5(content)) for name, content in each.packed.items()]
        monkeypatch.setattr(getattr(vision.datasets(), kind), "resources", resources)
    return known


@dataclass
class Server:
    """A local web server: its files, its faults, and the paths requested so far."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    requested: list[str] = field(default_factory=list)
    missing_bytes: int = 0
    delay: float = 0


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requested.append(self.path)
            time.sleep(state.delay)
            content = state.files.get(self.path.lstrip("/"))
            if content is None:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return self._send(content[: len(content) - state.missing_bytes])

        def _send(self, content: bytes) -> None:
            # The client first checks for redirections, and closes that connection early.
            with suppress(ConnectionError):
                self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Server(f"http://127.0.0.1:{http.server_port}/")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def serve(server: Server, monkeypatch: pytest.MonkeyPatch, kind: str, files: Mapping[str, bytes]) -> None:
    server.files.update(files)
    monkeypatch.setattr(getattr(vision.datasets(), kind), "mirrors", [NOWHERE, server.url])


# Location of the files


def test_environment_variable_sets_the_folder_of_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYROVAE_DATA", "/somewhere")
    assert fetch.folder() == Path("/somewhere")
    monkeypatch.delenv("PYROVAE_DATA")
    assert fetch.folder() == Path(os.environ["XDG_CACHE_HOME"]) / "pyrovae" / "datasets"
    monkeypatch.setenv("PYROVAE_DATA", "")
    assert fetch.folder() == Path(os.environ["XDG_CACHE_HOME"]) / "pyrovae" / "datasets"


@pytest.mark.parametrize("kind", MNIST_LIKE)
@pytest.mark.parametrize("form", ["archives", "unpacked", "mixed"])
def test_files_put_by_hand_need_no_network(kind: str, form: str, root: Path, mnist_like: dict[str, Tiny]) -> None:
    expected = mnist_like[kind]
    files = {"archives": expected.packed, "unpacked": expected.files}.get(form)
    first = list(expected.files)[:1]
    mixed = {name: expected.files[name] for name in first} | dict(list(expected.packed.items())[1:])
    put(root / kind / "raw", files or mixed)
    before = sorted(root.rglob("*"))
    source = MNIST_LIKE[kind]()
    assert expected.equals(source)
    assert sorted(root.rglob("*")) == before
    assert MNIST_LIKE[kind]() is source


def test_repacked_archive_with_known_content_is_accepted(root: Path, mnist_like: dict[str, Tiny]) -> None:
    for kind, call in MNIST_LIKE.items():
        repacked = {f"{name}.gz": gzip.compress(each, 1, mtime=5) for name, each in mnist_like[kind].files.items()}
        put(root / kind / "raw", repacked)
        if kind == "KMNIST":
            assert all(name in line(call) for name in repacked)
        else:
            assert mnist_like[kind].equals(call())


# Downloads


def test_download_shows_progress_and_happens_once(
    root: Path,
    server: Server,
    mnist_like: dict[str, Tiny],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve(server, monkeypatch, "MNIST", mnist_like["MNIST"].packed)
    assert mnist_like["MNIST"].equals(sets.mnist())
    shown = capsys.readouterr()
    assert shown.err.count("100%") >= 4
    assert shown.out == ""
    assert set(server.requested) == {f"/{name}" for name in mnist_like["MNIST"].packed}
    assert sorted(file.name for file in root.rglob("[!.]*.*")) == sorted(mnist_like["MNIST"].packed)
    server.files.clear()
    server.requested.clear()
    sets.mnist.cache_clear()
    assert mnist_like["MNIST"].equals(sets.mnist())
    assert server.requested == []


EXPECTED_FILES = {
    **{name: ("raw", *(f"{each}.gz" for each in NAMES), "unpacked") for name in ("mnist", "fashion_mnist", "kmnist")},
    "emnist": ("EMNIST/raw", "gzip.zip", "unpacked", "emnist-balanced-train-images-idx3-ubyte"),
    "omniglot": ("omniglot-py", "images_background.zip", "images_evaluation.zip"),
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-batches-py", "data_batch_1", "batches.meta"),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
}


@pytest.mark.parametrize("name", ALL)
def test_missing_network_error_names_files_and_folder(name: str, root: Path) -> None:
    message = line(ALL[name])
    assert message.startswith(f"{name}: ")
    for each in (str(root), "Connection refused", *EXPECTED_FILES[name]):
        assert each in message
    assert not [file for file in root.rglob("[!.]*") if file.is_file()]


@pytest.mark.parametrize("trouble", ["corrupt", "cut off", "not found", "silent"])
def test_failed_download_leaves_no_files(
    trouble: str, root: Path, server: Server, mnist_like: dict[str, Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = mnist_like["KMNIST"].packed
    serve(server, monkeypatch, "KMNIST", good)
    last = list(good)[-1]
    if trouble == "silent":
        monkeypatch.setattr(fetch, "TIMEOUT", 0.2)
        server.delay = 1
    server.missing_bytes = 10 if trouble == "cut off" else 0
    server.files |= {last: good[last][::-1]} if trouble == "corrupt" else {}
    server.files = {} if trouble == "not found" else server.files
    message = line(sets.kmnist)
    reason = {"corrupt": md5(good[last]), "cut off": "md5", "not found": "404", "silent": "timed out"}[trouble]
    for each in (reason, last, server.url, str(root / "KMNIST" / "raw")):
        assert each in message
    assert (next(iter(good)) in message) == (trouble != "corrupt")
    assert socket.getdefaulttimeout() is None
    assert [path.name for path in root.rglob("*.gz*") if path.name not in good or path.name == last] == []
    server.delay = server.missing_bytes = 0
    server.files = dict(good)
    assert mnist_like["KMNIST"].equals(sets.kmnist())


def test_partial_download_of_killed_process_is_replaced(
    root: Path, server: Server, mnist_like: dict[str, Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, raw = mnist_like["KMNIST"].packed, root / "KMNIST" / "raw"
    server.files.update(good)
    monkeypatch.setattr(vision.datasets().KMNIST, "mirrors", [server.url])
    first, second, *_ = good
    put(raw, {first: good[first][:50], f".{second}.part": good[second][:20]})
    assert mnist_like["KMNIST"].equals(sets.kmnist())
    assert {file.name: file.read_bytes() for file in raw.iterdir()} == good | {".lock": b""}


@pytest.mark.parametrize("kind", MNIST_LIKE)
def test_intact_archive_replaces_damaged_unpacked_file(kind: str, root: Path, mnist_like: dict[str, Tiny]) -> None:
    put(root / kind / "raw", mnist_like[kind].packed)
    put(root / kind / "raw", {NAMES[0]: mnist_like[kind].files[NAMES[0]][:100]})
    assert mnist_like[kind].equals(MNIST_LIKE[kind]())


# Damaged files


def truncated(content: bytes) -> bytes:
    return content[:-100]


def altered(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("kind", "damage", "expected"),
    [
        ("MNIST", truncated, ("4720 bytes", "[6, 28, 28]", "4620 bytes")),
        ("MNIST", altered, ("expected md5", "got md5")),
        ("MNIST", lambda _: idx(np.zeros((4, 28, 28))), ("4720 bytes", "3152 bytes")),
        ("MNIST", lambda _: tiny(seed=1).files[NAMES[0]], ("expected md5", "got md5")),
        ("MNIST", lambda _: b"", ("4720 bytes", "0 bytes")),
        ("FashionMNIST", altered, ("expected md5", "got md5")),
        ("KMNIST", truncated, ("4720 bytes", "4620 bytes")),
        ("KMNIST", lambda content: b"\1" + content[1:], ("idx file of shape [6, 28, 28]",)),
        ("KMNIST", lambda _: tiny(seed=0).files[NAMES[0]], ("md5 of no other data set",)),
    ],
)
def test_damaged_unpacked_file_is_named(
    kind: str,
    damage: Callable[[bytes], bytes],
    expected: tuple[str, ...],
    root: Path,
    mnist_like: dict[str, Tiny],
) -> None:
    files = mnist_like[kind].files
    put(root / kind / "raw", files | {NAMES[0]: damage(files[NAMES[0]])})
    message = line(MNIST_LIKE[kind])
    for each in (str(root / kind / "raw" / NAMES[0]), "delete it", *expected):
        assert each in message


@pytest.mark.parametrize("kind", MNIST_LIKE)
@pytest.mark.parametrize("damage", [truncated, altered, lambda _: b"no archive"])
def test_damaged_archive_is_named_without_network(
    kind: str, damage: Callable[[bytes], bytes], root: Path, mnist_like: dict[str, Tiny]
) -> None:
    good = mnist_like[kind].packed
    damaged = f"{NAMES[2]}.gz"
    put(root / kind / "raw", good | {damaged: damage(good[damaged])})
    message = line(MNIST_LIKE[kind])
    assert (
        f"{damaged} (the present file has md5 {md5(damage(good[damaged]))}, expected {md5(good[damaged])})" in message
    )
    assert f"{NAMES[0]}.gz" not in message


def test_unusable_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mnist_like: dict[str, Tiny], root: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "file"))
    assert "Not a directory" in line(sets.mnist)
    monkeypatch.setenv("PYROVAE_DATA", str(root))
    put(root / "MNIST" / "raw", mnist_like["MNIST"].files)
    (root / "MNIST" / "raw" / NAMES[3]).unlink()
    (root / "MNIST" / "raw" / NAMES[3]).mkdir()
    assert "Is a directory" in line(sets.mnist)


# The other data sets


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
        put(root / "EMNIST" / "raw", {"gzip.zip": content.getvalue()})
    if form != "archive":
        put(root / "EMNIST" / "raw", dict(list(known.files.items())[1:]))
        assert form == "both" or "expected gzip.zip" in line(sets.emnist)
        put(root / "EMNIST" / "raw", {EMNIST_NAMES[0]: known.files[EMNIST_NAMES[0]] if form == "unpacked" else b"half"})
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
        put(root / "omniglot-py", {f"{part}.zip": content.getvalue(), f"{part}/half/unpacked.png": b""})
        checksums[part] = md5(content.getvalue())
    monkeypatch.setattr(vision.datasets().Omniglot, "zips_md5", checksums)
    images, labels, published = everything(sets.omniglot())
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
    images, labels, published = everything(sets.cifar10())
    assert images.shape == (12, 3, 32, 32)
    assert images[2].flatten().tolist() == [value % 256 for value in range(1, 3073)]
    assert labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert published.tolist() == [True] * 10 + [False] * 2


def test_cifar10_loads_from_archive_or_batches(root: Path, cifar10: dict[str, bytes]) -> None:
    archive = vision.datasets().CIFAR10.filename
    put(root, {archive: cifar10[archive]})
    check_cifar10()
    (root / archive).unlink()
    sets.cifar10.cache_clear()
    check_cifar10()


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_damaged_batch_is_replaced_from_archive_or_named(name: str, root: Path, cifar10: dict[str, bytes]) -> None:
    *batches, archive = cifar10
    put(root, {each: cifar10[each] for each in batches})
    damaged = root / vision.datasets().CIFAR10.base_folder / name
    damaged.write_bytes(damaged.read_bytes()[:30])
    message = line(sets.cifar10)
    assert f"{archive} (or, undamaged in cifar-10-batches-py, {name}) in {root}" in message
    put(root, {archive: cifar10[archive][:200]})
    assert f"{archive} (the present file has md5" in line(sets.cifar10)
    put(root, {archive: cifar10[archive]})
    check_cifar10()


def test_svhn_labels_the_digit_zero_as_0(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, lines, arrays = np.random.default_rng(0), {}, []
    for part, digits in (("train", [1, 10, 3]), ("test", [10, 2])):
        file, content = f"{part}_32x32.mat", io.BytesIO()
        arrays.append(draw.integers(0, 256, (32, 32, 3, len(digits)), np.uint8))
        scipy.io.savemat(content, {"X": arrays[-1], "y": np.array(digits, np.uint8)[:, None]})
        lines[part] = [NOWHERE + file, file, md5(content.getvalue())]
        put(root, {file: content.getvalue()})
    monkeypatch.setattr(vision.datasets().SVHN, "split_list", lines | {"extra": ["", "", ""]})
    images, labels, published = everything(sets.svhn())
    assert images.equal(torch.tensor(np.concatenate(arrays, 3)).permute(3, 2, 0, 1))
    assert labels.tolist() == [1, 0, 3, 0, 2]
    assert published.tolist() == [True] * 3 + [False] * 2


# torchvision


def in_new_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def test_torchvision_is_imported_lazily_and_completely() -> None:
    result = in_new_process(
        "import sys, pyrovae.data.images, pyrovae.data.torchvision_datasets\n"
        "from pyrovae.data import vision\n"
        "assert 'torchvision' not in sys.modules\n"
        "assert vision.datasets() is vision.datasets()\n"
        "import torchvision.transforms, torchvision.utils\n"
        "assert torchvision.datasets is vision.datasets()\n"
        "parts = [name.rpartition('.') for name in sys.modules if name.startswith('torchvision.')]\n"
        "assert all(hasattr(sys.modules[package], part) for package, _, part in parts)"
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_other_import_errors_of_torchvision_propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: str) -> None:
        raise RuntimeError("another reason")

    monkeypatch.setattr(vision, "import_module", fails)
    with pytest.raises(RuntimeError, match="another reason"):
        vision.datasets()
    assert "torchvision" in sys.modules


# Users' own images


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
        (lambda folder: put(folder, {"notes.txt": b""}), ("expected images", ".webp", "none among 1 files")),
        (_of_two_sizes, ("one size", "5×4", "a/1.png", "6×4", "b/2.png")),
        (_truncated_image, ("2.png", "expected a readable image")),
        (lambda folder: put(folder, {"1.jpg": b"text"}), ("1.jpg", "expected a readable image")),
        (lambda folder: save(folder / "1.png", "I;16"), ("1.png", "8 bits", "I;16")),
    ],
)
def test_invalid_folder_gives_one_line(
    make: Callable[[Path], object], expected: tuple[str, ...], tmp_path: Path
) -> None:
    make(tmp_path / "mine")
    message = line(lambda: from_folder(tmp_path / "mine"))
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
    message = line(lambda: from_npz(tmp_path / "mine.npz"))
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
    message = line(lambda: from_npz(tmp_path / "mine.npz"))
    assert f"{tmp_path / 'mine.npz'}: expected" in message
    assert expected in message


def test_encrypted_npz_file_gives_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", images=IMAGES)
    content = bytearray((tmp_path / "mine.npz").read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1
    (tmp_path / "mine.npz").write_bytes(content)
    assert "expected readable arrays, got: File 'images.npy' is encrypted" in line(
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
