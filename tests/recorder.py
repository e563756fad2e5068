"""Copies a folder before each file operation there, and lists these operations."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock


@dataclass
class _Recorder:
    """What happens in a folder.

    Attributes:
        copies: where the states are copied to.
        busy: whether it is being copied, which is no operation.
    """

    folder: Path
    copies: Path
    operations: list[dict[str, Any]] = field(default_factory=list)
    busy: bool = False

    def inside(self, path: object) -> Path | None:
        """The path relative to the folder; None if it is outside."""
        if not isinstance(path, str | os.PathLike):
            return None
        full = Path(os.path.abspath(path))
        return full.relative_to(self.folder) if full != self.folder and full.is_relative_to(self.folder) else None

    def record(self, operation: str, path: Path, target: Path | None = None) -> None:
        """Records an operation, and the state of the folder before it."""
        self.busy = True
        state = {}
        copy = self.copies / str(len(self.operations))
        copy.mkdir(parents=True)
        for file in sorted(self.folder.rglob("*")) if self.folder.exists() else ():  # folders before their files
            name = file.relative_to(self.folder)
            if file.is_dir():
                (copy / name).mkdir()
            elif name.name.startswith("."):
                shutil.copyfile(file, copy / name)
            else:
                os.link(file, copy / name)
                stat = file.stat()
                state[str(name)] = [stat.st_ino, stat.st_size, stat.st_mtime_ns]
        changed = self.folder / path
        inode = changed.stat().st_ino if changed.exists() else 0
        self.operations.append(
            {"operation": operation, "path": str(path), "target": str(target or ""), "inode": inode, "state": state}
        )
        self.busy = False

    def sync(self, descriptor: int) -> None:
        """Records that a file was synced."""
        inode = os.fstat(descriptor).st_ino
        self.operations.append({"operation": "fsync", "path": "", "target": "", "inode": inode, "state": None})

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Records an event if it is a file operation in the folder."""
        if self.busy or event not in _EVENTS:
            return
        path = self.inside(arguments[0])
        if event == "open":
            _, mode, flags = arguments
            writes = any(letter in (mode or "") for letter in "wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if path is not None and writes:
                self.record(event, path)
        elif event == "os.rename" and (path is not None or self.inside(arguments[1]) is not None):
            self.record(event, path or Path("?"), self.inside(arguments[1]))
        elif path is not None:
            self.record(event, path)


_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
#: The recorder at work, if there is one: audit hooks cannot be removed.
_active: list[_Recorder] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    for recorder in _active:
        recorder.audit(event, arguments)


sys.addaudithook(_audit)


@contextmanager
def recorded(folder: Path, copies: Path) -> Iterator[None]:
    """Records what happens in a folder inside the block.

    COPIES/0, COPIES/1, … are the states before each operation and at the end; COPIES/operations.json is the list of
    operations. Copies of visible files are hard links, so a change in place would show in the inodes and sizes of the
    list.
    """
    recorder, sync = _Recorder(folder.resolve(), copies.resolve()), os.fsync

    def recorded_sync(descriptor: int) -> None:
        sync(descriptor)
        recorder.sync(descriptor)

    _active.append(recorder)
    try:
        with mock.patch.object(os, "fsync", recorded_sync):
            yield
    finally:
        _active.remove(recorder)
    recorder.record("end", Path())
    (copies / "operations.json").write_text(json.dumps(recorder.operations), encoding="utf-8")
