"""Downloads: their location, checks, faults, and damaged files."""

import gzip
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_mnist import (
    ALL,
    MNIST_LIKE,
    NAMES,
    Server,
    Tiny,
    error_line,
    idx,
    md5,
    serve,
    tiny,
    write_files,
)

from pyrovae.data import fetch, vision
from pyrovae.data import torchvision_datasets as sets

pytestmark = pytest.mark.usefixtures("root")


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
    write_files(root / kind / "raw", files or mixed)
    before = sorted(root.rglob("*"))
    source = MNIST_LIKE[kind]()
    assert expected.equals(source)
    assert sorted(root.rglob("*")) == before
    assert MNIST_LIKE[kind]() is source


def test_repacked_archive_with_known_content_is_accepted(root: Path, mnist_like: dict[str, Tiny]) -> None:
    for kind, call in MNIST_LIKE.items():
        repacked = {f"{name}.gz": gzip.compress(each, 1, mtime=5) for name, each in mnist_like[kind].files.items()}
        write_files(root / kind / "raw", repacked)
        if kind == "KMNIST":
            assert all(name in error_line(call) for name in repacked)
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
    message = error_line(ALL[name])
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
    message = error_line(sets.kmnist)
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
    write_files(raw, {first: good[first][:50], f".{second}.pyrovae.part": good[second][:20]})
    assert mnist_like["KMNIST"].equals(sets.kmnist())
    assert {file.name: file.read_bytes() for file in raw.iterdir()} == good | {".lock": b""}


@pytest.mark.parametrize("kind", MNIST_LIKE)
def test_intact_archive_replaces_damaged_unpacked_file(kind: str, root: Path, mnist_like: dict[str, Tiny]) -> None:
    write_files(root / kind / "raw", mnist_like[kind].packed)
    write_files(root / kind / "raw", {NAMES[0]: mnist_like[kind].files[NAMES[0]][:100]})
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
    write_files(root / kind / "raw", files | {NAMES[0]: damage(files[NAMES[0]])})
    message = error_line(MNIST_LIKE[kind])
    for each in (str(root / kind / "raw" / NAMES[0]), "delete it", *expected):
        assert each in message


@pytest.mark.parametrize("kind", MNIST_LIKE)
@pytest.mark.parametrize("damage", [truncated, altered, lambda _: b"no archive"])
def test_damaged_archive_is_named_without_network(
    kind: str, damage: Callable[[bytes], bytes], root: Path, mnist_like: dict[str, Tiny]
) -> None:
    good = mnist_like[kind].packed
    damaged = f"{NAMES[2]}.gz"
    write_files(root / kind / "raw", good | {damaged: damage(good[damaged])})
    message = error_line(MNIST_LIKE[kind])
    assert (
        f"{damaged} (the present file has md5 {md5(damage(good[damaged]))}, expected {md5(good[damaged])})" in message
    )
    assert f"{NAMES[0]}.gz" not in message


def test_unusable_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mnist_like: dict[str, Tiny], root: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "file"))
    assert "Not a directory" in error_line(sets.mnist)
    monkeypatch.setenv("PYROVAE_DATA", str(root))
    write_files(root / "MNIST" / "raw", mnist_like["MNIST"].files)
    (root / "MNIST" / "raw" / NAMES[3]).unlink()
    (root / "MNIST" / "raw" / NAMES[3]).mkdir()
    assert "Is a directory" in error_line(sets.mnist)
