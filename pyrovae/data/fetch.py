"""Files of known data sets: where they lie, and how they get there."""

import gzip
import hashlib
import os
import socket
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from io import BufferedIOBase
from pathlib import Path

import filelock
import platformdirs

from pyrovae.data import vision
from pyrovae.errors import InputError
from pyrovae.system.atomic import move_into_place, partial_path

#: Seconds after which a server that says nothing is given up.
TIMEOUT = 30.0


def folder() -> Path:
    """Where data sets lie: ``$PYROVAE_DATA``, or else ``datasets`` in pyrovae's cache folder."""
    default = Path(platformdirs.user_cache_dir("pyrovae")) / "datasets"
    return Path(os.environ.get("PYROVAE_DATA") or default).expanduser()


@dataclass(frozen=True)
class Remote:
    """A file as it is distributed.

    Attributes:
        path: where it belongs.
        urls: where it can be downloaded, the best address first.
        md5: of the file.
        unpacked_md5: of what is packed in it, if known; then a file will do that others packed in their own way.
    """

    path: Path
    urls: Sequence[str]
    md5: str
    unpacked_md5: str | None = None

    def is_here(self) -> bool:
        """Whether the file is there, and is the one expected."""
        return vision.datasets().utils.check_integrity(self.path, self.md5) or self._is_repacked()

    def _is_repacked(self) -> bool:
        try:
            with gzip.open(self.path) as file:
                return self.unpacked_md5 is not None and md5(file) == self.unpacked_md5
        except (OSError, EOFError, zlib.error):
            return False

    def __str__(self) -> str:
        if not self.path.is_file():
            return self.path.name
        return f"{self.path.name} (what is there has {self._difference(self.path)})"

    def download(self) -> None:
        """Downloads the file from the first address that has it, unless another process has just done so.

        Raises:
            ConnectionError: no address has it, with the reason for each.
            OSError: nothing can be written where it belongs.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        reasons = []
        with filelock.FileLock(self.path.parent / ".lock"):
            for url in self.urls:
                try:
                    return None if self.is_here() else self._retrieve(url)
                except (OSError, HTTPException, RuntimeError) as error:
                    reasons.append(f"{url}: {reason(error)}")
        raise ConnectionError("; ".join(reasons))

    def _retrieve(self, url: str) -> None:
        partial = partial_path(self.path)
        # torchvision would take the partial file of a killed process for a complete download.
        partial.unlink(missing_ok=True)
        with _timeout(TIMEOUT):
            vision.datasets().utils.download_url(url, partial.parent, partial.name)
        if difference := self._difference(partial):
            partial.unlink()
            raise RuntimeError(f"what came has {difference}")
        move_into_place(partial, self.path)

    def _difference(self, path: Path) -> str:
        with path.open("rb") as file:
            got = md5(file)
        return "" if got == self.md5 else f"md5 {got}, not {self.md5}"


def fetch(name: str, files: Sequence[Remote], instead: str = "") -> None:
    """Downloads those of a data set's files that are not there.

    Args:
        name: the data set.
        files: what it is made of, in one folder.
        instead: what would do as well, for the message.

    Raises:
        InputError: a download failed.
    """
    missing = [file for file in files if not file.is_here()]
    for done, file in enumerate(missing):
        try:
            file.download()
        except ConnectionError as error:
            raise InputError(
                f"{name}: expected {', '.join(map(str, missing[done:]))}{instead} in {file.path.parent}, "
                f"and the download failed ({error}); put there what is missing or damaged, or try again"
            ) from error


def md5(file: BufferedIOBase) -> str:
    """The checksum of a file's content, in hexadecimal."""
    return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def reason(error: Exception) -> str:
    """What an error says, in one line.

    Example:
        >>> reason(OSError("no\\n  route")), reason(TimeoutError())
        ('no route', 'TimeoutError')
    """
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
