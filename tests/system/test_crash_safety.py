"""Kills, full disks and deleted files: what is on disk stays readable, and resuming gives the same results."""

import errno
import json
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import xarray as xr
from filelock import FileLock
from helpers import (
    STUDY,
    TIMEOUT,
    assert_refused,
    assert_same_results,
    contents,
    main_with_one_figure,
    one_figure,
    run_commands,
)
from PIL import Image
from recorder import recorded

from pyrovae import InputError, open_results, run
from pyrovae.analysis.report import tables
from pyrovae.build import make_data
from pyrovae.estimators import Annealing, Optimisation
from pyrovae.runner.diagnose import diagnose_run
from pyrovae.runner.folders import remove
from pyrovae.runner.remeasure import reevaluate
from pyrovae.runner.reporting import REPORT, draw_again
from pyrovae.store import records
from pyrovae.store.checkpoint import load_header
from pyrovae.store.layout import METRICS, RunFolder, moving_checkpoints
from pyrovae.study import key_of
from pyrovae.system import atomic
from pyrovae.system.provenance import software_versions
from pyrovae.training.trainer import Training


@dataclass(frozen=True)
class Phase:
    """A command whose file operations are recorded.

    Attributes:
        command: with ``{folder}`` for the folder that it writes, and ``{place}`` for that of the recording.
        start: the phase that left the folder as it was before; none for a new folder.
        finished: the numbers of finished runs before and after.
        stride: the short suite reads every so many of its states.
    """

    command: str
    start: str
    finished: tuple[int, int]
    stride: int = 1

    def begin(self, place: Path, folder: Path) -> None:
        """Puts into a folder what the command starts from."""
        if self.start:
            shutil.copytree(place / self.start / "study", folder)

    def arguments(self, place: Path, folder: Path) -> list[str]:
        return [word.format(place=place, folder=folder) for word in self.command.split()]

    def do(self, place: Path, folder: Path) -> None:
        """Does what the command does, in this process."""
        from pyrovae.cli import app

        with redirect_stdout(StringIO()):
            app(self.arguments(place, folder), standalone_mode=False)


MERGE = "merge {place}/first {place}/second --out {folder}"
PHASES = {
    "training": Phase("run {place}/small.yaml --out {folder}", "", (0, 2)),
    "evaluation": Phase("evaluate {folder} --samples 2", "training", (2, 2)),
    "report": Phase("report {folder}", "evaluation", (2, 2)),
    "growth": Phase(
        "run {place}/small.yaml --out {folder} --set seed=[0,1,2] --set steps=80", "evaluation", (2, 6), 4
    ),
    "merge": Phase(MERGE, "", (0, 6)),
    "merge into a part": Phase(MERGE, "evaluation", (2, 6), 4),
}  # fmt: skip


@contextmanager
def little_drawn() -> Iterator[None]:
    """Draws one figure of each study, and writes a report without tables."""
    with one_figure(), mock.patch.object(tables, "measured", return_value={}):
        yield


@pytest.fixture(autouse=True)
def _little_drawn() -> Iterator[None]:
    with little_drawn():
        yield


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each phase, the folder after it in `PHASE/study`, and its states before each file operation in `PHASE`.

    The parts `first` and `second` are the depths of the grown study. All processes that test share one recording, which
    is not changed.
    """
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "recording"
    with FileLock(f"{place}.lock"):
        if not place.exists():
            _record(base / "new")
            (base / "new").rename(place)
    return place


def _record(place: Path) -> None:
    place.mkdir()
    (place / "small.yaml").write_text(STUDY.to_yaml(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, little_drawn():
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        for name, phase in PHASES.items():
            phase.begin(place, place / name / "study")
            with recorded(place / name / "study", place / name):
                phase.do(place, place / name / "study")
            for part, depth in (("first", 2), ("second", 1)) if name == "growth" else ():
                shutil.copytree(place / name / "study", place / part)
                remove(place / part, depth=depth)


@pytest.fixture(scope="module")
def complete(recording: Path) -> Path:
    """The study, trained and evaluated once more."""
    return recording / "evaluation" / "study"


@pytest.fixture(scope="module")
def trained(recording: Path) -> Path:
    """The same study before it was re-evaluated."""
    return recording / "training" / "study"


def operations(recording: Path, phase: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((recording / phase / "operations.json").read_text(encoding="utf-8"))
    assert sum(each["operation"] == "os.rename" for each in found) > 2
    return found


def steps_done(folder: Path) -> dict[str, int]:
    """The steps in the furthest file of each run, by key."""
    found: dict[str, int] = {}
    for file in [*folder.glob("runs/*/weights.safetensors"), *moving_checkpoints(folder)]:
        header = load_header(file)[0]
        found |= {key: max(header.step, found.get(key, 0)) for key in header.keys}
    return found


def check_readable(folder: Path, checked: dict[Any, int] | None = None) -> int:
    """Fails unless every file of a folder is complete and belongs to one study; returns the number of finished runs.

    Args:
        checked: earlier answers by inode, so that no file is read twice.
    """
    checked = {} if checked is None else checked
    inodes = {file: file.stat().st_ino for file in folder.rglob("[!.]*.*")}
    for file, inode in inodes.items():
        if inode not in checked:
            checked[inode] = 0
            _check_figure(file)
    if not (folder / "study.yaml").exists():
        assert not [file for file in folder.rglob("[!.]*") if file.is_file()]
        return 0
    figures = (".png", ".svg", ".html")
    state = frozenset((file.name, inode) for file, inode in inodes.items() if file.suffix not in figures)
    if state not in checked:
        results = open_results(folder)
        finished = [run for run in results.study.runs() if results.status(run) == "done"]
        for each in finished:
            results.pair(**{key: getattr(each, key) for key in results.study.axes})
        checked[state] = len(finished)
    return checked[state]


def _check_figure(file: Path) -> None:
    if file.suffix == ".png":
        with Image.open(file) as image:
            image.verify()
    elif file.suffix == ".svg":
        ElementTree.parse(file)
    elif file.suffix == ".html":
        assert file.read_text(encoding="utf-8").rstrip().endswith("</html>")


@pytest.mark.parametrize("phase", PHASES)
def test_files_change_only_by_atomic_rename(phase: str, recording: Path) -> None:
    """The new file is synced before the rename, and the folder after it; only the log is appended to."""
    found = [each for each in operations(recording, phase) if each["path"] != METRICS]
    kept = [each for each in found if each["state"] is not None]
    for before, after in pairwise(kept):
        changed = {name for name, stat in after["state"].items() if before["state"].get(name) != stat}
        changed |= before["state"].keys() - after["state"].keys()
        changed -= {METRICS}
        expected = {"os.rename": {before["target"]}, "os.remove": {before["path"]} & before["state"].keys()}
        assert changed == expected.get(before["operation"], set()), before
        is_partial = Path(before["path"]).name.startswith(".")
        assert before["operation"] != "os.remove" or is_partial or before["path"].startswith("training/"), before
        assert before["operation"] != "open" or is_partial, before
    for number, each in enumerate(found):
        if each["operation"] == "os.rename":
            written = max(n for n, earlier in enumerate(found[:number]) if earlier["path"] == each["path"])
            synced = [n for n, one in enumerate(found) if one["operation"] == "fsync" and one["inode"] == each["inode"]]
            assert any(written < n < number for n in synced), each
            assert found[number + 1]["operation"] == "fsync", each


def _check_states(recording: Path, phase: str, stride: int) -> None:
    """No run ever loses steps, and in each of the chosen states, all files can be read and no finished run is lost."""
    states = [recording / phase / str(number) for number in _states(recording, phase)]
    for before, after in pairwise(map(steps_done, states)):
        assert all(after.get(key, -1) >= step for key, step in before.items())
    checked: dict[Any, int] = {}
    chosen = [*states[:-1:stride], states[-1]]
    finished = [check_readable(state, checked) for state in chosen]
    assert (finished[0], finished[-1]) == PHASES[phase].finished
    study = _content(states[-1] / "study.yaml")  # a larger one has unfinished runs at first
    of_study = [each for each, state in zip(finished, chosen, strict=True) if _content(state / "study.yaml") == study]
    assert of_study == sorted(of_study)


@pytest.mark.parametrize("phase", PHASES)
def test_folder_is_readable_after_file_operations(phase: str, recording: Path) -> None:
    _check_states(recording, phase, PHASES[phase].stride)


@pytest.mark.long
@pytest.mark.parametrize("phase", [name for name, phase in PHASES.items() if phase.stride > 1])
def test_folder_is_readable_after_every_file_operation(phase: str, recording: Path) -> None:
    _check_states(recording, phase, 1)


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def _states(recording: Path, phase: str) -> list[int]:
    """Numbers of the last operations before which the visible files differ: all partial files are there."""
    states: dict[str, int] = {}
    for number, each in enumerate(operations(recording, phase)):
        if each["state"] is not None:
            states[json.dumps(each["state"], sort_keys=True)] = number
    return list(states.values())


@contextmanager
def watched() -> Iterator[tuple[dict[str, int], list[Path]]]:
    """The steps from which runs are trained, by key, and the records that are written."""
    begun: dict[str, int] = {}
    written: list[Path] = []
    train, save = Training.run, records.save

    def noted_train(self: Training, **options: Any) -> None:
        assert not begun.keys() & set(self.cohort.keys)
        begun.update(dict.fromkeys(self.cohort.keys, self.step))
        train(self, **options)

    def noted_save(file: Path, *rest: Any) -> None:
        written.append(file)
        save(file, *rest)

    with mock.patch.object(Training, "run", noted_train), mock.patch.object(records, "save", noted_save):
        yield begun, written


def _check_resume(recording: Path, phase: str, number: int, folder: Path, rng: np.random.Generator) -> None:
    """Resumes from a recorded state, with partial files truncated at random, and compares the results.

    Each run continues from its furthest state, and what was measured is not measured again.
    """
    state, end = recording / phase / str(number), recording / phase / "study"
    if state.exists():
        shutil.copytree(state, folder)
    for file in folder.rglob(".*.part"):
        content = file.read_bytes()
        file.write_bytes(content[: rng.integers(len(content) + 1)])
    with watched() as (begun, written):
        PHASES[phase].do(recording, folder)
    assert begun == {key: steps_done(state).get(key, 0) for key in begun}
    assert len(set(written)) == len(written)
    for file in written:
        earlier = state / file.relative_to(folder)
        assert not (earlier.exists() and earlier.samefile(end / file.relative_to(folder))), file
    assert_same_results(end, folder)
    assert contents(folder, "figures/**/*").keys() == contents(end, "figures/**/*").keys()


@pytest.mark.parametrize("phase", PHASES)
def test_resume_from_a_random_operation_gives_same_results(phase: str, recording: Path, tmp_path: Path) -> None:
    """Of the first half, after which more is left to do."""
    rng = np.random.default_rng(0)
    numbers = [n for n, each in enumerate(operations(recording, phase)) if each["state"] is not None]
    number = int(rng.choice(numbers[: len(numbers) // 2]))
    _check_resume(recording, phase, number, tmp_path / "resumed", rng)


@pytest.mark.long
@pytest.mark.parametrize("phase", PHASES)
def test_resume_from_every_operation_gives_same_results(phase: str, recording: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number in _states(recording, phase):
        _check_resume(recording, phase, number, tmp_path / str(number), rng)


@contextmanager
def forked(target: Callable[[], None], *arguments: str) -> Iterator[multiprocessing.process.BaseProcess]:
    """The command in a forked process, where torch is already imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pyrovae.cli", "pyrovae.runner.run", "pyrovae.analysis.findings"])
    with mock.patch.object(sys, "argv", ["pyrovae", *arguments]):
        process = context.Process(target=target)
        process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _check_random_kills(
    recording: Path, place: Path, rng: np.random.Generator, kills: int, phases: Iterable[str] = PHASES
) -> set[int]:
    """Kills the command of each phase several times, and compares the results; returns the exit codes."""
    from pyrovae.cli import main

    codes = set()
    for name in phases:
        phase, folder = PHASES[name], place / name / "study"
        phase.begin(recording, folder)
        target = main if name == "report" else main_with_one_figure
        arguments = phase.arguments(recording, folder)
        for _ in range(kills):
            with forked(target, *arguments) as process:
                process.join(rng.uniform(0, 3))
                kill = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
                assert process.pid is not None
                if process.is_alive():
                    os.kill(process.pid, kill)
                process.join(TIMEOUT)
                codes.add(process.exitcode)
            check_readable(folder)
        with forked(target, *arguments) as process:
            process.join(TIMEOUT)
            assert process.exitcode == 0
        assert_same_results(recording / name / "study", folder)
    return codes


@pytest.mark.long
def test_results_are_the_same_after_random_kills(recording: Path, tmp_path: Path) -> None:
    codes = _check_random_kills(recording, tmp_path, np.random.default_rng(3), kills=3, phases=["growth"])
    assert codes & {-signal.SIGKILL, 130}
    # 1: interrupted before the command began.
    assert codes <= {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 130, 1, 0}


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_results_are_the_same_after_many_random_kills(seed: int, recording: Path, tmp_path: Path) -> None:
    _check_random_kills(recording, tmp_path, np.random.default_rng([4, seed]), kills=6)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limits the size of files: a write beyond it fails like a write to a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.long
def test_full_disk_is_one_line_and_loses_nothing(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    make_data(STUDY.runs()[0])  # fills the cache of images
    weights, record = (next(trained.glob(f"runs/*/{name}")) for name in ("weights.safetensors", "record.nc"))
    for size in (file.stat().st_size for file in (trained / "study.yaml", weights, record, trained / REPORT)):
        with largest_file(size // 2), pytest.raises(OSError, match="File too large; an earlier version is unchanged"):
            run(STUDY, folder, quiet=True)
        check_readable(folder)
        assert not list(folder.rglob("*.part"))
    run(STUDY, folder, quiet=True)
    assert_same_results(trained, folder)
    diagnosis = partial(
        diagnose_run, folder, {"depth": 1}, [0], chains=2, draws=10, warmup=10, annealing=Annealing(5, 2),
        optimisation=Optimisation(5),
    )  # fmt: skip
    for command in (partial(reevaluate, folder, samples=2), partial(draw_again, folder), diagnosis):
        with largest_file(100_000), pytest.raises(OSError, match="File too large"):
            command()
        check_readable(folder)
    assert_same_results(trained, folder)


@pytest.mark.long
@pytest.mark.parametrize("phase", ["merge", "growth", "merge into a part"])
def test_full_disk_is_one_line_in_every_phase(phase: str, recording: Path, tmp_path: Path) -> None:
    """Where a file of random size or a larger one cannot be written; the same command goes on from there."""
    rng, folder = np.random.default_rng(5), tmp_path / "study"
    make_data(STUDY.runs()[0])  # fills the cache of images
    PHASES[phase].begin(recording, folder)
    end = recording / phase / "study"
    sizes = [
        (end / each["target"]).stat().st_size for each in operations(recording, phase) if "runs/" in each["target"]
    ]
    with largest_file(int(rng.choice(sizes)) // 2), pytest.raises(OSError, match="File too large; an earlier") as full:
        PHASES[phase].do(recording, folder)
    assert "\n" not in str(full.value)
    check_readable(folder)
    assert not list(folder.rglob("*.part"))
    PHASES[phase].do(recording, folder)
    assert_same_results(end, folder)


@pytest.mark.parametrize("phase", [pytest.param("growth", marks=pytest.mark.long), "merge into a part"])
def test_damaged_record_is_one_line_and_repaired(phase: str, recording: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    PHASES[phase].begin(recording, folder)
    record = next(folder.glob("runs/*/record.nc"))
    record.write_bytes(record.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="damaged") as caught:
        PHASES[phase].do(recording, folder)
    (line,) = {str(each.message) for each in caught}
    assert line.startswith(f"{record}: ")
    assert "\n" not in line
    assert_same_results(recording / phase / "study", folder)


@pytest.mark.long
def test_read_only_folder_can_be_read_only(recording: Path, complete: Path, tmp_path: Path) -> None:
    folder = tmp_path / "read_only"
    shutil.copytree(complete, folder)
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    study = recording / "small.yaml"
    writing = [f"run {study} --out {folder}", f"run {study} --out {folder}/new", f"report {folder}"]
    writing += [f"evaluate {folder} --samples 3", f"run {study} --out {folder} --set seed=[0,1]"]
    writing += [f"merge {folder} {recording}/first --out {folder}"]
    reading = [
        f"merge {folder} {recording}/first --out {tmp_path}/merged",
        f"show {folder} --provenance",
        f"compare {folder} {complete} --out {tmp_path}/both",
    ]
    unprivileged = ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else []  # root may write anywhere
    for each in folders:
        each.chmod(0o555)
    try:
        done = run_commands(*(command.split() for command in [*writing, *reading]), wrapper=unprivileged)
    finally:
        for each in folders:
            each.chmod(0o755)
    for command in done[: len(writing)]:
        assert_refused(command, "expected a writable folder, got: Permission denied")
    for command in done[len(writing) :]:
        assert (command.returncode, command.stderr) == (0, "")
    assert (tmp_path / "both" / REPORT).exists()


def _after_checkpoint(step: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls a function after the checkpoint of a step is saved."""
    save = Training.save

    def saved(self: Training, file: Path) -> None:
        save(self, file)
        if self.step == step:
            action()

    monkeypatch.setattr(Training, "save", saved)


@pytest.mark.long
@pytest.mark.parametrize("what", ["study.yaml", "training", "runs", "."])
def test_files_deleted_during_training_are_written_again(
    what: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, countdown = tmp_path / "deleted", [2]

    def remove() -> None:
        countdown[0] -= 1
        if countdown[0] == 0:  # in the second cohort, after the first is finished
            path = folder / what
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    with monkeypatch.context() as patch:
        _after_checkpoint(40, remove, patch)
        run(STUDY, folder, quiet=True)
    assert countdown == [0]
    assert check_readable(folder) >= 1
    run(STUDY, folder, quiet=True)
    assert_same_results(trained, folder)


LOCK_FOREVER = """
import os, sys, time
from pathlib import Path
from pyrovae.system import atomic
with atomic.locked(Path("locked")):
    if os.fork():
        print("locked", flush=True)
    time.sleep(600)
"""


def test_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    """Even while a child of the dead process lives on; the next holder is then named."""
    folder = tmp_path / "locked"
    command = [sys.executable, "-c", LOCK_FOREVER]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, process_group=0) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "locked\n"
            assert _refusal(folder) == f"process {first.pid} on {platform.node()}"
            first.kill()
            first.wait()
            for _ in range(200):  # until the child has closed the inherited lock
                with suppress(InputError), atomic.locked(folder):
                    break
                time.sleep(0.05)
            with atomic.locked(folder):
                assert _refusal(folder) == f"process {os.getpid()} on {platform.node()}"
            assert not (folder / ".holder").exists()
        finally:
            os.killpg(first.pid, signal.SIGKILL)


def test_partial_file_that_is_a_link_is_removed_alone(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "study"
    for each in (elsewhere, folder):
        each.mkdir()
    (elsewhere / "file").touch()
    link = atomic.partial_path(folder / "link")
    link.symlink_to(elsewhere)
    with atomic.locked(folder):
        assert not link.is_symlink()
    assert (elsewhere / "file").exists()


def test_lock_works_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems that lack it; filelock falls back to the existence of the lock file."""

    def flock(*_: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(UserWarning, match="flock not supported"), atomic.locked(tmp_path / "locked"):
        assert _refusal(tmp_path / "locked") == f"process {os.getpid()} on {platform.node()}"
    with pytest.warns(UserWarning, match="flock not supported"), atomic.locked(tmp_path / "locked"):
        pass


def _refusal(folder: Path) -> str:
    """The process that the error names."""
    with pytest.raises(InputError) as refused, atomic.locked(folder):
        pass
    return str(refused.value).removeprefix(f"{folder}: expected a free folder, but it is in use by ")


@pytest.mark.parametrize(
    "content", [b"", b"12", b"\xff\xfe", b"1 \x1b[31mred", b"99999999999999999999 here", b"1" * 10**6]
)
def test_invalid_holder_file_is_not_quoted(content: bytes, tmp_path: Path) -> None:
    with atomic.locked(tmp_path / "locked"):
        (tmp_path / "locked/.holder").write_bytes(content)
        assert _refusal(tmp_path / "locked") == "another process"


@pytest.mark.long
def test_interrupted_evaluation_measures_nothing_twice(
    complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(complete, tmp_path / "study")
    save, measured = records.save, []

    def counted(file: Path, *rest: Any) -> None:
        measured.append(file.parents[1].name)
        save(file, *rest)
        if len(measured) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(records, "save", counted)
    with pytest.raises(KeyboardInterrupt):
        reevaluate(tmp_path / "study", samples=3)
    _, resumed = reevaluate(tmp_path / "study", samples=3)
    assert len(set(measured)) == len(measured) == 2
    _, repeated = reevaluate(tmp_path / "study", samples=3)
    assert len(measured) == 2
    xr.testing.assert_identical(repeated.tree, resumed.tree)


def test_half_trained_weights_never_pass_for_finished(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run loses its weights and its record, and is killed while it is trained again."""
    folder = tmp_path / "study"
    shutil.copytree(trained, folder)
    lost = RunFolder.of(folder, key_of(open_results(folder).run(depth=1)))
    shutil.rmtree(lost.path)

    def kill() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        _after_checkpoint(40, kill, patch)
        with pytest.raises(KeyboardInterrupt):
            run(STUDY, folder, quiet=True)
    assert open_results(folder).status(open_results(folder).run(depth=1)) == "pending"
    assert open_results(folder).status(open_results(folder).run(depth=2)) == "done"
    run(STUDY, folder, quiet=True)
    assert_same_results(trained, folder)


def test_weights_without_a_record_are_measured_and_not_trained(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(trained, folder)
    RunFolder.of(folder, key_of(open_results(folder).run(depth=1))).record().unlink()
    monkeypatch.setattr(Training, "run", lambda *_, **__: pytest.fail("trained"))
    run(STUDY, folder, quiet=True)
    assert_same_results(trained, folder)


@pytest.mark.long
def test_resume_with_other_versions_is_reported_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        _after_checkpoint(20, stop, patch)
        with pytest.raises(KeyboardInterrupt):
            run(STUDY, tmp_path / "study")
    capsys.readouterr()
    before = software_versions()
    monkeypatch.setattr("pyrovae.runner.setup.software_versions", lambda: "pyrovae 9")
    results = run(STUDY, tmp_path / "study")
    output = capsys.readouterr().out.replace("\n", " ")
    assert f"from step 20 on with other versions {before} → pyrovae 9: last digits may differ" in output
    assert output.count("last digits may differ") == 1
    versions = results.tree["runs/versions"].sel(seed=0, beta=1.0)
    assert versions.sel(depth=1).item() == f"{before}, from step 20 on pyrovae 9"
    assert versions.sel(depth=2).item() == "pyrovae 9"
