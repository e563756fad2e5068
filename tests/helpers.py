"""Shared by tests: a small study, results in memory, the command in a process, comparison of results and files."""

import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import xarray as xr
from matplotlib.figure import Figure

from pyrovae import Results, Study, open_results, parts
from pyrovae.analysis import figures
from pyrovae.analysis.report import page
from pyrovae.training.trainer import Interrupted, Training

#: The default study, which the first command of the README trains in a checkout.
DEFAULT = Path(__file__).parents[1] / "runs/quick"
needs_default_study = pytest.mark.skipif(not DEFAULT.exists(), reason="needs the default study: pyrovae run")

#: What draws the figures of a study, writes a figure, and writes a report.
DRAWN, SAVEFIG, SAVE_REPORT = figures.drawn, Figure.savefig, page.save
#: The installed command.
COMMAND = str(Path(sys.executable).with_name("pyrovae"))
#: A test of every prior, of which one is an ordinary differential equation and takes as long as all others together.
every_prior = pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.long] * (each == "flow_matching")) for each in parts.names("prior")]
)
#: Seconds after which a hanging command is stopped; not a measure of speed.
TIMEOUT = 120
STUDY = Study(
    name="small", data="tetrominoes", train_images=128, test_images=64, depth=[1, 2], width=8, latent_size=2, steps=60,
    batch_size=32, checkpoint_every=20,
    measure={"particles": 4, "reconstructions": 8, "images": 64, "outer": 64, "probe": 32, "points": 8},
)  # fmt: skip
#: Two depths, which train separately, with two β each.
STORED = Study(
    name="stored", train_images=64, test_images=32, beta=[0.1, 1], depth=[1, 2], width=4, latent_size=2, steps=12,
    batch_size=16, checkpoint_every=5,
    measure={"images": 32, "outer": 16, "likelihood_images": 8, "particles": 30, "reconstructions": 8, "probe": 8,
             "points": 4},
)  # fmt: skip
_COMMANDS = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from unittest import mock
from pyrovae.analysis import figures
from pyrovae.cli import main
from pyrovae.runner import estimate
mock.patch.object(figures, "drawn", return_value={}).start()
mock.patch.multiple(estimate, step_time=lambda *_: 0.01, measuring_time=lambda *_: 0.01).start()
for arguments in json.loads(sys.argv[1]):
    sys.argv, code = ["pyrovae", *arguments], 0
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            main()
        except SystemExit as exit:
            code = exit.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


class InMemory(Results):
    """Results in memory.

    Args:
        images: values per image; none by default.
        pictures: by group.
    """

    def __init__(
        self, tree: xr.DataTree, images: xr.Dataset | None = None, pictures: Mapping[str, xr.Dataset] | None = None
    ) -> None:
        self.tree, self.folder, self.name = tree, Path(), ""
        self._images, self._pictures = images, pictures or {}

    def images(self, /, **at: Any) -> xr.Dataset:
        return super().images(**at) if self._images is None else self._images.sel(at)

    def pictures(self, group: str, /, **at: Any) -> xr.Dataset:
        return self._pictures[group].sel(at) if group in self._pictures else xr.Dataset()


@contextmanager
def no_drawing() -> Iterator[None]:
    """Leaves out figures and reports, which take longer than training in most tests."""
    with (
        mock.patch("pyrovae.runner.reporting.draw"),
        mock.patch("pyrovae.analysis.figures.save", return_value=[]),
    ):
        yield


def _touch(drawn: object, file: object, **_: object) -> None:
    if isinstance(file, str | Path):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()


def _empty(results: object, names: Collection[str] = (), **_: object) -> dict[str, Figure]:
    return {name: Figure() for name in names} if isinstance(names, tuple) else {}


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Draws no figures of studies, and leaves those asked for by name, other figures and reports empty."""
    with (
        mock.patch.object(figures, "drawn", _empty),
        mock.patch.object(Figure, "savefig", _touch),
        mock.patch.object(page, "save", lambda results, drawn, dark, file: _touch(results, file)),
    ):
        yield


@contextmanager
def all_figures() -> Iterator[None]:
    """Draws figures and writes reports, as users have them, although tests draw none."""
    with (
        mock.patch.object(figures, "drawn", DRAWN),
        mock.patch.object(Figure, "savefig", SAVEFIG),
        mock.patch.object(page, "save", SAVE_REPORT),
    ):
        yield


@contextmanager
def one_figure() -> Iterator[None]:
    """Draws one figure of each study."""
    with all_figures(), mock.patch.object(figures, "FIGURES", {"rate_distortion": figures.rate_distortion}):
        yield


def main_with_one_figure() -> None:
    """The command of this process, which draws one figure."""
    from pyrovae.cli import main

    with one_figure():
        main()


@contextmanager
def stopped_after(step: int) -> Iterator[None]:
    """Stops every training once its checkpoint of a step is written; the block is left without an error."""
    save = Training.save

    def stopped(self: Training, file: Path) -> None:
        save(self, file)
        if self.step == step:
            raise Interrupted

    with mock.patch.object(Training, "save", stopped), suppress(Interrupted):
        yield
        raise AssertionError(f"no training reached step {step}")


def contents(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """The files in a folder whose names match, except for hidden ones, by path."""
    files = [file for file in folder.rglob(pattern) if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(files)}


def run_commands(*commands: Sequence[str], wrapper: Sequence[str] = ()) -> list[subprocess.CompletedProcess[str]]:
    """Runs several pyrovae commands in one new process, which imports torch once and draws no figures.

    Args:
        wrapper: a program that starts this process, with its arguments.
    """
    process = [*wrapper, sys.executable, "-c", _COMMANDS, json.dumps(commands)]
    done = subprocess.run(process, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    return [subprocess.CompletedProcess(command, *each) for command, each in zip(commands, ended, strict=True)]


def assert_refused(done: subprocess.CompletedProcess[str], expected: str) -> None:
    """Asserts that a command ended with status 2 and one line that contains the expected text."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr


def assert_same_results(one: Path, other: Path) -> None:
    """Asserts that two folders contain identical results and weights, except for times and worker names."""
    trees = [open_results(folder).tree for folder in (one, other)]
    assert list(trees[0].children) == list(trees[1].children)
    for node in trees[0].subtree:
        ours, theirs = (
            tree[node.path].to_dataset().drop_vars(["seconds", "worker", "file"], errors="ignore") for tree in trees
        )
        xr.testing.assert_identical(ours, theirs)
    names = [{str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} for folder in (one, other)]
    assert not [name for name in names[1] if name.endswith(".part")]
    free = ("figures", ".locks", "metrics.jsonl")
    kept = [{name for name in each if not any(part in name for part in free)} for each in names]
    assert kept[0] == kept[1]
    for file in one.glob("runs/*/weights.safetensors"):
        assert file.read_bytes() == (other / file.relative_to(one)).read_bytes()
