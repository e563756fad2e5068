"""Fixtures of downloaded data sets."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_mnist import ALL, MNIST_LIKE, NOWHERE, Server, Tiny, md5, tiny

from pyrovae.data import torchvision_datasets as sets
from pyrovae.data import vision


@pytest.fixture
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
