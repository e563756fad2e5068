"""Runs the command, and keeps what its folder looks like before each of its file operations there.

    python recorder.py FOLDER COPIES ARGUMENT...

COPIES/0, COPIES/1, … are the states, one before each operation and one at the end, and COPIES/operations.json is the
list of operations. A file under its own name is a hard link: if it were ever changed in place, its copies would change
too, and the inodes and sizes in the list would tell.
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
    """The path below the folder, if it is there."""
    if not isinstance(path, str | os.PathLike):
        return None
    full = Path(os.path.abspath(path))
    return full.relative_to(folder) if full != folder and full.is_relative_to(folder) else None


def keep(operation: str, path: Path, target: Path | None = None) -> None:
    """Records an operation that is about to be done, and the state before it."""
    global recording
    recording = True
    state = {}
    copy = copies / str(len(operations))
    copy.mkdir(parents=True)
    for file in sorted(folder.rglob("*")) if folder.exists() else ():
        name = file.relative_to(folder)
        if file.is_dir():
            (copy / name).mkdir(parents=True, exist_ok=True)
        elif name.name.startswith("."):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy / name)
        else:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(file, copy / name)
            told = file.stat()
            state[str(name)] = [told.st_ino, told.st_size, told.st_mtime_ns]
    whole = folder / path
    inode = whole.stat().st_ino if whole.exists() else 0
    operations.append(
        {"operation": operation, "path": str(path), "target": str(target or ""), "inode": inode, "state": state}
    )
    recording = False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if recording or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"):
        return
    path = inside(arguments[0])
    if event == "open":
        _, mode, flags = arguments
        writes = any(letter in (mode or "") for letter in "wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if path is not None and writes:
            keep(event, path)
    elif event == "os.rename" and (path is not None or inside(arguments[1]) is not None):
        keep(event, path or Path("?"), inside(arguments[1]))
    elif path is not None:
        keep(event, path)


def synced(descriptor: int) -> None:
    sync(descriptor)
    inode = os.fstat(descriptor).st_ino
    operations.append({"operation": "fsync", "path": "", "target": "", "inode": inode, "state": None})


if __name__ == "__main__":
    folder, copies = (Path(each).resolve() for each in sys.argv[1:3])
    os.fsync = synced  # type: ignore[assignment]
    sys.addaudithook(watch)
    sys.argv = ["pyrovae", *sys.argv[3:]]
    try:
        from pyrovae.cli import main

        main()
    finally:
        keep("end", Path())
        (copies / "operations.json").write_text(json.dumps(operations), encoding="utf-8")
