"""Kills, full disks and files that vanish: what was done stays readable, and goes on to the same results."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from pyrovae import InputError, Study, open_results, run
from pyrovae.build import make_data
from pyrovae.estimators import Annealing, Optimisation
from pyrovae.runner import cohort as work
from pyrovae.runner.diagnose import diagnose_run
from pyrovae.runner.experiment import reevaluate
from pyrovae.runner.reporting import REPORT, draw_again
from pyrovae.store.results import Results
from pyrovae.system import atomic, provenance
from pyrovae.system.provenance import software_versions
from pyrovae.training.trainer import Training

pytestmark = pytest.mark.usefixtures("few_figures")

COMMAND = str(Path(sys.executable).with_name("pyrovae"))
SETTINGS = {
    "name": "small",
    "data": "tetrominoes",
    "train_images": 128,
    "test_images": 64,
    "depth": [1, 2],
    "width": 8,
    "latent_size": 2,
    "steps": 60,
    "batch_size": 32,
    "checkpoint_every": 20,
    "measure": {"particles": 4, "reconstructions": 8, "images": 64, "outer": 64, "probe": 32, "points": 8},
}
STUDY = Study.of(**SETTINGS)
#: No measure of speed: without a limit, a command that ought to stop would run for days.
LIMIT = 120


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study left alone, in `whole`; and in `copies` what its folder was like before each file operation."""
    place = tmp_path_factory.mktemp("recording")
    (place / "small.yaml").write_text(STUDY.to_yaml(), encoding="utf-8")
    recorder = [sys.executable, str(Path(__file__).parents[1] / "recorder.py"), "whole"]
    for copies, command in {
        "training": ["run", "small.yaml", "--out", "whole"],
        "evaluation": ["evaluate", "whole", "--samples", "2"],
    }.items():
        done = subprocess.run([*recorder, copies, *command], cwd=place, capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def whole(recording: Path) -> Path:
    return recording / "whole"


@pytest.fixture(scope="module")
def trained(recording: Path) -> Path:
    """The same before it was evaluated again."""
    return recording / "training" / str(len(operations(recording, "training")) - 1)


PHASES = ("training", "evaluation")


def operations(recording: Path, phase: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((recording / phase / "operations.json").read_text(encoding="utf-8"))
    assert sum(each["operation"] == "os.rename" for each in found) > 10
    return found


def same(one: Path, other: Path) -> None:
    """The same results but for how long they took and whose work they were, weights and files; none is half-written."""
    trees = [open_results(each).tree for each in (one, other)]
    assert list(trees[0].children) == list(trees[1].children)
    for node in trees[0].subtree:
        ours, theirs = (
            each[node.path].to_dataset().drop_vars(["seconds", "worker"], errors="ignore") for each in trees
        )
        xr.testing.assert_identical(ours, theirs)
    names = [[str(file.relative_to(each)) for file in each.rglob("*") if file.is_file()] for each in (one, other)]
    apart = ("figures", ".locks")
    kept = [{name for name in each if not any(word in name for word in apart)} for each in names]
    assert kept[0] == kept[1]
    assert not [name for name in names[1] if name.endswith(".part")]
    for file in one.glob("checkpoints/[!.]*"):
        assert file.read_bytes() == (other / "checkpoints" / file.name).read_bytes()


def readable(folder: Path, known: dict[Any, int] | None = None) -> int:
    """Fails unless every file of a folder is whole, and all are of one study; tells how many cohorts are done.

    Args:
        known: what was found before of the same files, by their inodes, which is not looked at again.
    """
    known = {} if known is None else known
    inodes = {file: file.stat().st_ino for file in folder.rglob("[!.]*.*")}
    for file, inode in inodes.items():
        if inode in known:
            continue
        known[inode] = 0
        if file.suffix == ".png":
            with Image.open(file) as image:
                image.verify()
        elif file.suffix == ".svg":
            ElementTree.parse(file)
        elif file.suffix == ".html":
            assert file.read_text(encoding="utf-8").rstrip().endswith("</html>")
    if not (folder / "study.yaml").exists():
        assert not [file for file in folder.rglob("[!.]*") if file.is_file()]
        return 0
    drawn = (".png", ".svg", ".html")
    read = frozenset((file.name, inode) for file, inode in inodes.items() if file.suffix not in drawn)
    if read in known:
        return known[read]
    results = open_results(folder)
    done = [cohort for cohort in results.study.cohorts() if results.has(cohort)]
    for cohort in done:
        results.pair(**{key: getattr(cohort.shared, key) for key in results.study.axes})
    known[read] = len(done)
    return len(done)


@pytest.mark.parametrize("phase", PHASES)
def test_file_under_its_name_is_never_written_to(phase: str, recording: Path) -> None:
    """All that happens to it is that another takes its place, which was safe on disk before; and the folder after."""
    found = operations(recording, phase)
    kept = [each for each in found if each["state"] is not None]
    for before, after in pairwise(kept):
        changed = {name for name, told in after["state"].items() if before["state"].get(name) != told}
        changed |= before["state"].keys() - after["state"].keys()
        renamed = before["operation"] == "os.rename"
        assert changed == ({before["target"]} if renamed else set()), before
        assert before["operation"] != "open" or Path(before["path"]).name.startswith("."), before
    for number, each in enumerate(found):
        if each["operation"] == "os.rename":
            written = max(n for n, earlier in enumerate(found[:number]) if earlier["path"] == each["path"])
            synced = [n for n, one in enumerate(found) if one["operation"] == "fsync" and one["inode"] == each["inode"]]
            assert any(written < n < number for n in synced), each
            assert found[number + 1]["operation"] == "fsync", each


@pytest.mark.parametrize("phase", PHASES)
def test_every_prefix_of_the_file_operations_is_readable(phase: str, recording: Path) -> None:
    known: dict[Any, int] = {}
    done = [readable(recording / phase / str(n), known) for n in _states(recording, phase)]
    assert done == sorted(done)
    assert (done[0], done[-1]) == ((0, 2) if phase == "training" else (2, 2))


def _states(recording: Path, phase: str) -> list[int]:
    """The prefixes of the operations that differ in what a reader sees."""
    states: dict[str, int] = {}
    for number, each in enumerate(operations(recording, phase)):
        if each["state"] is not None:
            states.setdefault(json.dumps(each["state"], sort_keys=True), number)
    return list(states.values())


def _go_on(recording: Path, phase: str, number: int, place: Path, rng: np.random.Generator) -> None:
    """Goes on from a prefix, in which files that were being written are cut somewhere."""
    shutil.copytree(recording / phase / str(number), place)
    for file in place.rglob(".*.part"):
        content = file.read_bytes()
        file.write_bytes(content[: rng.integers(len(content) + 1)])
    run(STUDY, place, quiet=True)
    reevaluate(place, samples=2)
    same(recording / "whole", place)


def test_prefix_ends_with_the_same_results(recording: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    numbers = [n for n, each in enumerate(operations(recording, "training")) if each["state"] is not None]
    number = int(rng.choice(numbers[: len(numbers) // 2]))
    _go_on(recording, "training", number, tmp_path / "cut", rng)


@pytest.mark.long
@pytest.mark.parametrize("phase", PHASES)
def test_all_prefixes_end_with_the_same_results(phase: str, recording: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number in _states(recording, phase):
        _go_on(recording, phase, number, tmp_path / str(number), rng)


@contextmanager
def forked(*arguments: str) -> Iterator[multiprocessing.process.BaseProcess]:
    """The command in a process of its own, which need not import torch again."""
    from pyrovae.cli import main

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pyrovae.cli", "pyrovae.runner.experiment", "pyrovae.analysis.findings.claims"])
    with mock.patch.object(sys, "argv", ["pyrovae", *arguments]):
        process = context.Process(target=main)
        process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _kill_at_random(whole: Path, folder: Path, rng: np.random.Generator, kills: int) -> set[int]:
    """Kills a run, an evaluation and a report, each some times; every time what is there is readable."""
    study = str(whole.parent / "small.yaml")
    ended = set()
    for command in (
        ("run", study, "--out", str(folder)),
        ("evaluate", str(folder), "--samples", "2"),
        ("report", str(folder)),
    ):
        for _ in range(kills):
            with forked(*command) as process:
                process.join(rng.uniform(0, 4))
                kill = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
                assert process.pid is not None
                if process.is_alive():
                    os.kill(process.pid, kill)
                process.join(LIMIT)
                ended.add(process.exitcode)
            readable(folder)
        with forked(*command) as process:
            process.join(LIMIT)
            assert process.exitcode == 0
    same(whole, folder)
    return ended


def test_study_killed_at_random_ends_with_the_results_of_one_left_alone(whole: Path, tmp_path: Path) -> None:
    ended = _kill_at_random(whole, tmp_path / "cut", np.random.default_rng(3), kills=1)
    assert ended & {-signal.SIGKILL, 130}
    # 1 is an interrupt before the command has begun.
    assert ended <= {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 130, 1, 0}


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_study_killed_many_times_ends_with_the_results_of_one_left_alone(
    seed: int, whole: Path, tmp_path: Path
) -> None:
    _kill_at_random(whole, tmp_path / "cut", np.random.default_rng([4, seed]), kills=6)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk on which no file can be larger: to write on fails as it does on a full one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_is_one_line_and_loses_nothing(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    make_data(STUDY.runs()[0])  # the images are in the cache
    sizes = [(trained / name).stat().st_size for name in ("study.yaml", "checkpoints/cohort-000.safetensors", REPORT)]
    for size in sizes:
        with largest_file(size // 2), pytest.raises(OSError, match="File too large; what was there before is whole"):
            run(STUDY, folder, quiet=True)
        readable(folder)
        assert not list(folder.rglob("*.part"))
    run(STUDY, folder, quiet=True)
    same(trained, folder)
    diagnosis = partial(
        diagnose_run, folder, {"depth": 1}, [0], chains=2, draws=10, warmup=10, annealing=Annealing(5, 2),
        optimisation=Optimisation(5),
    )  # fmt: skip
    for command in (partial(reevaluate, folder, samples=2), partial(draw_again, folder), diagnosis):
        with largest_file(100_000), pytest.raises(OSError, match="File too large"):
            command()
        readable(folder)
    same(trained, folder)


def _without_privileges() -> list[str]:
    """What to put before a command so that it may not write where nobody may, although root runs it."""
    return ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else []


MANY = """
import sys
import time
from pyrovae.cli import main
for line in sys.stdin:
    sys.argv = ["pyrovae", *line.split()]
    try:
        main()
    except SystemExit as ended:
        print(ended.code, file=sys.stderr)
"""


def test_folder_that_is_read_only_is_read_and_not_written_to(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(whole, folder)
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    study = whole.parent / "small.yaml"
    written = [f"run {study} --out {folder}", f"run {study} --out {folder}/new", f"report {folder}"]
    written += [f"evaluate {folder} --samples 3"]
    read = [f"show {folder} --provenance", f"compare {folder} {whole} --out {tmp_path}/both"]
    for place in places:
        place.chmod(0o555)
    try:
        done = subprocess.run(
            [*_without_privileges(), sys.executable, "-c", MANY],
            input="\n".join([*written, *read]),
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    finally:
        for place in places:
            place.chmod(0o755)
    told = done.stderr.splitlines()
    refused = "expected a folder that can be written to, got: Permission denied"
    assert [refused in line for line in told[: 2 * len(written) : 2]] == [True] * len(written)
    assert told[1 : 2 * len(written) : 2] == ["2"] * len(written)
    assert told[2 * len(written) :] == ["None"] * len(read)
    assert (tmp_path / "both" / REPORT).exists()


def _stop_at(step: int, then: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Has something happen after the checkpoint of a step."""
    save = Training.save

    def saved(self: Training, file: Path) -> None:
        save(self, file)
        if self.step == step:
            then()

    monkeypatch.setattr(Training, "save", saved)


@pytest.mark.parametrize(
    "what", [*(pytest.param(each, marks=pytest.mark.long) for each in ("study.yaml", "checkpoints", "results.nc")), "."]
)
def test_what_is_removed_underneath_is_written_anew(
    what: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, left = tmp_path / "cut", [2]

    def remove() -> None:
        left[0] -= 1
        if left[0] == 0:  # in the second cohort, when the first is done
            path = folder / what
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    with monkeypatch.context() as patch:
        _stop_at(40, remove, patch)
        run(STUDY, folder, quiet=True)
    assert left == [0]
    assert readable(folder) >= 1
    run(STUDY, folder, quiet=True)
    same(trained, folder)


HOLD = """
import os, sys, time
from pathlib import Path
from pyrovae.system import atomic
with atomic.locked(Path("held")):
    if os.fork():
        print("held", flush=True)
    time.sleep(600)
"""


def test_second_process_is_told_of_the_first_and_goes_on_when_it_has_died(tmp_path: Path) -> None:
    """Though a process that the first one started is still there; a third is told of the second, then."""
    folder = tmp_path / "held"
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, process_group=0) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "held\n"
            assert _refusal(folder) == f"process {first.pid} on {platform.node()} is at work in it"
            first.kill()
            first.wait()
            for _ in range(200):  # until the one left behind has let go of what it inherited
                with suppress(InputError), atomic.locked(folder):
                    break
                time.sleep(0.05)
            with atomic.locked(folder):
                assert _refusal(folder) == f"process {os.getpid()} on {platform.node()} is at work in it"
            assert not (folder / ".holder").exists()
        finally:
            os.killpg(first.pid, signal.SIGKILL)


def test_folder_is_one_process_s_where_the_file_system_has_no_flock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock file stands in."""

    def flock(*_: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(UserWarning, match="flock not supported"), atomic.locked(tmp_path / "held"):
        assert _refusal(tmp_path / "held") == f"process {os.getpid()} on {platform.node()} is at work in it"
    with pytest.warns(UserWarning, match="flock not supported"), atomic.locked(tmp_path / "held"):
        pass


def _refusal(folder: Path) -> str:
    """What is said of the process that has a folder."""
    with pytest.raises(InputError) as refused, atomic.locked(folder):
        pass
    return str(refused.value).removeprefix(f"{folder}: expected a free folder, but ")


@pytest.mark.parametrize(
    "told", [b"", b"12", b"\xff\xfe", b"1 \x1b[31mred", b"99999999999999999999 here", b"1" * 10**6]
)
def test_what_a_stranger_says_of_the_holder_is_not_repeated(told: bytes, tmp_path: Path) -> None:
    with atomic.locked(tmp_path / "held"):
        (tmp_path / "held/.holder").write_bytes(told)
        assert _refusal(tmp_path / "held") == "another process is at work in it"


def test_evaluation_that_was_interrupted_goes_on(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured before is not measured again, and asked for once more, nothing is."""
    shutil.copytree(whole, tmp_path / "study")
    measure, measured = work.measure, []
    record = Results.record

    def counted(study: Study, cohort: Any, *rest: Any) -> Any:
        measured.append(cohort.index)
        return measure(study, cohort, *rest)

    def recorded(self: Results, *rest: Any) -> None:
        record(self, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "measure", counted)
    with monkeypatch.context() as patch:
        patch.setattr(Results, "record", recorded)
        with pytest.raises(KeyboardInterrupt):
            reevaluate(tmp_path / "study", samples=3)
    _, again = reevaluate(tmp_path / "study", samples=3)
    assert measured == [0, 1]
    assert again.name == "evaluation_2"
    _, once_more = reevaluate(tmp_path / "study", samples=3)
    assert measured == [0, 1]
    xr.testing.assert_identical(once_more, again)


def test_what_goes_on_under_other_versions_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        _stop_at(20, stop, patch)
        with pytest.raises(KeyboardInterrupt):
            run(STUDY, tmp_path / "study")
    capsys.readouterr()
    before = software_versions()
    monkeypatch.setattr(provenance, "software_versions", lambda: "pyrovae 9")
    results = run(STUDY, tmp_path / "study")
    told = capsys.readouterr().out.replace("\n", " ")
    assert f"from step 20 on with other versions {before} → pyrovae 9: last digits may differ" in told
    assert told.count("last digits may differ") == 1
    versions = results.tree["runs/versions"].sel(seed=0, beta=1.0)
    assert versions.sel(depth=1).item() == f"{before}, from step 20 on pyrovae 9"
    assert versions.sel(depth=2).item() == "pyrovae 9"
