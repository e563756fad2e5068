"""Progress of a study: a bar on a terminal, plain lines elsewhere."""

import logging
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_LOG = logging.getLogger("pyrovae")


class ProgressReporter(Protocol):
    """Receives the progress of tasks, here (`StudyProgress`) or on another machine, and may ask them to stop."""

    def start(self, label: str, steps: int, done: int = 0) -> "ProgressTask":
        """Starts a task of ``steps`` steps, ``done`` of which were done earlier."""

    def report(self, task: "ProgressTask", before: int) -> None:
        """A task has advanced from ``before`` to ``task.done`` steps."""

    def note(self, text: str) -> None:
        """Prints a line."""

    def stop_requested(self) -> bool:
        """Whether the work should stop."""


@dataclass(eq=False)
class ProgressTask:
    """One task, such as the training of a cohort.

    Attributes:
        steps: number of steps of the task.
        done: steps done.
        resumed_at: steps done before it was started.
        first_step: seconds from its start until its first step was done; 0 before that.
    """

    reporter: ProgressReporter
    label: str
    steps: int
    done: int
    resumed_at: int = field(init=False)
    first_step: float = field(default=0.0, init=False)
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        self.resumed_at, self._started = self.done, time.perf_counter()

    def update(self, done: int) -> None:
        """Reports that ``done`` steps are done."""
        before, self.done = self.done, done
        self.first_step = self.first_step or time.perf_counter() - self._started
        self.reporter.report(self, before)

    def advance(self) -> None:
        """Reports one more step."""
        self.update(self.done + 1)


class StudyProgress:
    """Shows the progress of a study over all of its tasks.

    Args:
        total: steps of all tasks together.
        quiet: show nothing.
    """

    def __init__(self, total: int = 0, *, quiet: bool = False) -> None:
        self._console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        # A bar in a notebook is a widget.
        self._live = self._console.is_terminal or bool(self._console.is_jupyter and find_spec("ipywidgets"))
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._live,
            speed_estimate_period=60,
        )
        self._overall = self._bar.add_task("", total=total)
        self._total = total
        self._tasks: list[ProgressTask] = []

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, label: str, steps: int, done: int = 0) -> ProgressTask:
        """Starts a task of ``steps`` steps, ``done`` of which were done earlier and are subtracted from the total."""
        self.add_steps(-done)
        task = ProgressTask(self, label, steps, done)
        self._tasks.append(task)
        self._show(label)
        return task

    def report(self, task: ProgressTask, before: int) -> None:
        """Moves the bar or, without a terminal, prints a line at some of the steps."""
        self._show(task.label)
        marks = [task.resumed_at + 100, *range(0, task.steps + 1, max(1, task.steps // 5))]
        if not self._live and any(before < mark <= task.done for mark in marks):
            self.note(f"{task.label}: {task.done:,} of {task.steps:,} steps{self._time_left()}")

    def restart(self, label: str) -> None:
        """Forgets the tasks with this label, and those whose label extends it: their steps will be done again."""
        dropped = [task for task in self._tasks if f"{task.label}, ".startswith(f"{label}, ")]
        self._tasks = [task for task in self._tasks if task not in dropped]
        self.add_steps(sum(task.resumed_at for task in dropped))

    def add_steps(self, steps: int) -> None:
        """Adds steps to the total."""
        self._total += steps
        self._bar.update(self._overall, total=self._total)

    def note(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        _LOG.info(text)
        self._bar.console.print(text, markup=False)

    def stop_requested(self) -> bool:
        """Never: signals stop this process."""
        return False

    def _show(self, label: str) -> None:
        done = sum(task.done - task.resumed_at for task in self._tasks)
        self._bar.update(self._overall, description=label, completed=done)

    def _time_left(self) -> str:
        seconds = self._bar.tasks[0].time_remaining
        return "" if seconds is None else f", about {seconds:.0f} s left in all"


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} steps/s" if task.speed else "")
