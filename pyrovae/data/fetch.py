"""Files of published data sets: where they are stored, and how they are downloaded and checked."""

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

#: Seconds to wait for a server to respond.
TIMEOUT = 30.0


def folder() -> Path:
    """The folder of data sets: ``$PYROVAE_DATA``, or ``datasets`` in pyrovae's cache folder."""
    default = Path(platformdirs.user_cache_dir("pyrovae")) / "datasets"
    return Path(os.environ.get("PYROVAE_DATA") or default).expanduser()


@dataclass(frozen=True)
class Remote:
    """A file to download.

    Attributes:
        path: local path.
        urls: addresses to download it from, in order of preference.
        md5: checksum of the file.
        unpacked_md5: checksum of the unpacked content, if known; the same content packed differently is then accepted.
    """

    path: Path
    urls: Sequence[str]
    md5: str
    unpacked_md5: str | None = None

    def is_present(self) -> bool:
        """Whether the file exists and has the expected checksum."""
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
        return f"{self.path.name} (the present file has {self._difference(self.path)})"

    def download(self) -> None:
        """Downloads the file from the first address that works, unless another process has just done so.

        Raises:
            ConnectionError: no address works, with the reason for each.
            OSError: the file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        reasons = []
        with filelock.FileLock(self.path.parent / ".lock"):
            for url in self.urls:
                try:
                    return None if self.is_present() else self._retrieve(url)
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
            raise RuntimeError(f"the downloaded file has {difference}")
        move_into_place(partial, self.path)

    def _difference(self, path: Path) -> str:
        with path.open("rb") as file:
            got = md5(file)
        return "" if got == self.md5 else f"md5 {got}, expected {self.md5}"


def fetch(name: str, files: Sequence[Remote], alternative: str = "") -> None:
    """Downloads the missing or damaged files of a data set.

    Args:
        name: the data set.
        files: its files, in one folder.
        alternative: which other files would be accepted, for the message.

    Raises:
        InputError: a download failed.
    """
    missing = [file for file in files if not file.is_present()]
    for done, file in enumerate(missing):
        try:
            file.download()
        except ConnectionError as error:
            raise InputError(
                f"{name}: expected {', '.join(map(str, missing[done:]))}{alternative} in {file.path.parent}, "
                f"and the download failed ({error}); put the files there by hand, or try again"
            ) from error


def md5(file: BufferedIOBase) -> str:
    """MD5 of a file's content, in hexadecimal."""
    return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def reason(error: Exception) -> str:
    """The message of an error on one line, or else its type.

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
