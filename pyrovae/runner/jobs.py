"""What is left to do for a study: the runs that lack steps or numbers, in cohorts that start from the same state."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pyrovae.errors import InputError
from pyrovae.store.checkpoint import Checkpoint, CheckpointHeader, load_header
from pyrovae.store.layout import RunFolder, moving_checkpoint, moving_checkpoints
from pyrovae.store.results import Results, measured_with, user_sources
from pyrovae.study import Cohort, Run
from pyrovae.system.provenance import Environment


@dataclass(frozen=True)
class State:
    """The state from which a run continues.

    Attributes:
        file: the checkpoint that holds it, relative to the folder of the study; None for initial weights.
        step: steps done in that state.
        environments: the environments of these steps.
    """

    file: Path | None = None
    step: int = 0
    environments: tuple[Environment, ...] = ()


@dataclass(frozen=True)
class Job:
    """Runs that are trained to their last step together, and measured.

    Attributes:
        cohort: the runs.
        files: the checkpoints that they continue from, relative to the folder of the study; none for initial weights.
        step: steps done before.
        size: bytes of memory that each run takes, as far as is known.
    """

    cohort: Cohort
    files: tuple[Path, ...] = ()
    step: int = 0
    size: int = 0

    @property
    def steps(self) -> int:
        """Steps of the training, including those done before."""
        return self.cohort.shared.steps

    def load(self, folder: Path) -> Checkpoint | None:
        """The state that the runs continue from; None for initial weights.

        Raises:
            InputError: a file is damaged.
        """
        parts = [_continued(Checkpoint.load(folder / file), self.cohort.shared) for file in self.files]
        if not parts:
            return None
        held = [key for part in parts for key in part.header.keys]
        whole = Checkpoint.join(parts)
        return whole if tuple(held) == self.cohort.keys else whole.select(self.cohort.keys)

    def resumed(self, folder: Path) -> "Job":
        """The same job from its moving checkpoint in a folder, or from the weights of its runs, if it has begun."""
        moving = moving_checkpoint(Path(), self.cohort.key)
        own = tuple(RunFolder.of(Path(), key).weights for key in self.cohort.keys)
        for files in ((moving,), own):
            headers = [_header(folder / file, lambda text: None) for file in files]
            steps = {-1 if header is None else _step(header, self.cohort.shared) for header in headers}
            if len(steps) == 1 and (step := steps.pop()) > self.step:
                return replace(self, files=files, step=step)
        return self

    def halves(self) -> list["Job"]:
        """The same runs in two jobs."""
        return [replace(self, cohort=half) for half in self.cohort.halves()]


def jobs(results: Results, warn: Callable[[str], None] = lambda text: None) -> list[Job]:
    """What is left to do for a study, in the order of its cohorts.

    Runs train together if they share all settings that a cohort shares, and continue from the same step of the same
    history. Those of a checkpoint of a cohort at work stay together.

    Args:
        warn: called with a line about each file that cannot be used.

    Raises:
        InputError: a run has done more steps than the study asks for, or cannot continue.
    """
    inventory = _Inventory.of(results, warn)
    seen: set[str] = set()
    found = []
    for cohort in results.study.cohorts():
        groups: dict[tuple[object, ...], list[tuple[Run, State]]] = {}
        for key, run in zip(cohort.keys, cohort.runs, strict=True):
            if key in seen or inventory.is_finished(key, run):
                continue
            seen.add(key)
            state = inventory.state(key, run)
            together = state.file if state.file in inventory.moving else None
            groups.setdefault((together, state.step, state.environments), []).append((run, state))
        for (_, step, _), members in groups.items():
            files = dict.fromkeys(state.file for _, state in members if state.file is not None)
            found.append(Job(Cohort(tuple(run for run, _ in members)), tuple(files), int(str(step))))
    return found


def covered(folder: Path) -> Iterator[Path]:
    """The checkpoints of cohorts at work of which every run has weights of its own that are as far."""
    for file in moving_checkpoints(folder):
        header = _header(file, lambda text: None)
        if header is not None:
            own = [_header(RunFolder.of(folder, key).weights, lambda text: None) for key in header.keys]
            if all(each is not None and each.step >= header.step for each in own):
                yield file


@dataclass(frozen=True)
class _Inventory:
    """What the folder of a study has of its runs.

    Attributes:
        measured: the digest that a record has if it was made with the settings of the study.
        records: by key, the step, the weights and the digest of a run's record.
        moving: the checkpoints of cohorts at work, with their headers, relative to the folder.
        holders: by key, those of these checkpoints that hold the run.
    """

    results: Results
    warn: Callable[[str], None]
    measured: str
    records: dict[str, tuple[int, str, str]]
    moving: dict[Path, CheckpointHeader]
    holders: dict[str, list[Path]] = field(default_factory=dict)

    @classmethod
    def of(cls, results: Results, warn: Callable[[str], None]) -> "_Inventory":
        folder, measure = results.folder, results.study.measure
        runs = results.tree["runs"].to_dataset()
        facts = zip(*(runs[name].values.flat for name in ("key", "step", "weights", "measured")), strict=True)
        known = {key: (int(step), weights, measured) for key, step, weights, measured in facts}
        headers = {file.relative_to(folder): _header(file, warn) for file in moving_checkpoints(folder)}
        moving = {file: header for file, header in headers.items() if header is not None}
        found = cls(results, warn, measured_with(measure, user_sources(measure)), known, moving)
        for file, header in moving.items():
            for key in header.keys:
                found.holders.setdefault(key, []).append(file)
        return found

    def is_finished(self, key: str, run: Run) -> bool:
        """Whether the record of a run was made as the study asks, from its weights after its last step.

        Raises:
            InputError: the run has done more steps.
        """
        step, weights, measured = self.records[key]
        if step > run.steps:
            raise self._too_far(step, run)
        if step != run.steps or measured != self.measured:
            return False
        file = RunFolder.of(self.results.folder, key).weights
        return not file.exists() or _checksum(file) in (weights, None)

    def state(self, key: str, run: Run) -> State:
        """The furthest state of a run.

        Raises:
            InputError: it has done more steps than it should, or β has a schedule over fewer steps.
        """
        own = RunFolder.of(self.results.folder, key).weights
        header = _header(own, self.warn) if own.exists() else None
        states = [] if header is None else [(own.relative_to(self.results.folder), header)]
        states += [(file, self.moving[file]) for file in self.holders.get(key, [])]
        best = State()
        for file, header in states:
            if header.step > run.steps:
                raise self._too_far(header.step, run)
            step = _step(header, run)
            if run.is_stretched and step and header.runs[0]["steps"] != run.steps:
                raise InputError(
                    f"steps: the run at {self._place(run)} cannot continue, because its β has a schedule over "
                    f"{header.runs[0]['steps']:,} steps, not {run.steps:,}; choose another --out"
                )
            if step > best.step:
                environments = tuple(each for each in header.environments if each.since < step)
                best = State(file, step, environments)
        return best

    def _too_far(self, step: int, run: Run) -> InputError:
        return InputError(
            f"steps: expected at least the {step:,} steps that the run at {self._place(run)} has done, got "
            f"{run.steps:,}; choose another --out for a shorter training"
        )

    def _place(self, run: Run) -> str:
        coordinates = self.results.study.coordinates(run)
        return ", ".join(f"{axis} {value}" for axis, value in coordinates.items())


def _step(header: CheckpointHeader, run: Run) -> int:
    """The step from which a run continues: one in the tail of a shorter training goes back to where that began."""
    return header.step if header.branch_step in (None, run.branch_step) else int(header.branch_step or 0)


def _continued(checkpoint: Checkpoint, run: Run) -> Checkpoint:
    return checkpoint if _step(checkpoint.header, run) == checkpoint.header.step else checkpoint.at_branch()


def _header(file: Path, warn: Callable[[str], None]) -> CheckpointHeader | None:
    """The header of a checkpoint; None if it is missing or cannot be read."""
    try:
        return load_header(file)[0]
    except FileNotFoundError:
        return None
    except InputError as error:
        warn(str(error))
        return None


def _checksum(file: Path) -> str | None:
    """The checksum of weights; None if they cannot be read."""
    try:
        return load_header(file)[1]
    except InputError:
        return None
