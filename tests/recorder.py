"""Runs the pyrovae command and copies its folder before each file operation there.

    python recorder.py FOLDER COPIES ARGUMENT...

COPIES/0, COPIES/1, … are the states before each operation and at the end; COPIES/operations.json is the list of
operations. Copies of visible files are hard links, so a change in place would show in the inodes and sizes of the list.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

folder = copies = Path()
operations: list[dict[str, Any]] = []
recording = False
sync = os.fsync


def inside(path: object) -> Path | None:
    """The path relative to the folder; None if it is outside."""
    if not isinstance(path, str | os.PathLike):
        return None
    full = Path(os.path.abspath(path))
    return full.relative_to(folder) if full != folder and full.is_relative_to(folder) else None


def record(operation: str, path: Path, target: Path | None = None) -> None:
    """Records an operation, and the state of the folder before it."""
    global recording
    recording = True
    state = {}
    copy = copies / str(len(operations))
    copy.mkdir(parents=True)
    for file in sorted(folder.rglob("*")) if folder.exists() else ():  # folders before their files
        name = file.relative_to(folder)
        if file.is_dir():
            (copy / name).mkdir()
        elif name.name.startswith("."):
            shutil.copyfile(file, copy / name)
        else:
            os.link(file, copy / name)
            stat = file.stat()
            state[str(name)] = [stat.st_ino, stat.st_size, stat.st_mtime_ns]
    changed = folder / path
    inode = changed.stat().st_ino if changed.exists() else 0
    operations.append(
        {"operation": operation, "path": str(path), "target": str(target or ""), "inode": inode, "state": state}
    )
    recording = False


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if recording or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"):
        return
    path = inside(arguments[0])
    if event == "open":
        _, mode, flags = arguments
        writes = any(letter in (mode or "") for letter in "wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if path is not None and writes:
            record(event, path)
    elif event == "os.rename" and (path is not None or inside(arguments[1]) is not None):
        record(event, path or Path("?"), inside(arguments[1]))
    elif path is not None:
        record(event, path)


def recorded_sync(descriptor: int) -> None:
    sync(descriptor)
    inode = os.fstat(descriptor).st_ino
    operations.append({"operation": "fsync", "path": "", "target": "", "inode": inode, "state": None})


if __name__ == "__main__":
    folder, copies = (Path(each).resolve() for each in sys.argv[1:3])
    os.fsync = recorded_sync  # type: ignore[assignment]
    sys.addaudithook(audit)
    sys.argv = ["pyrovae", *sys.argv[3:]]
    try:
        from pyrovae.cli import main

        main()
    finally:
        record("end", Path())
        (copies / "operations.json").write_text(json.dumps(operations), encoding="utf-8")
