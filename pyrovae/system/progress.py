"""Progress of a study: a bar on a terminal, plain lines elsewhere, and the time that is left."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_LOG = logging.getLogger("pyrovae")
#: Seconds between lines where there is no terminal.
INTERVAL = 30.0
#: Seconds of a phase after which its actual speed counts as much as the expected one.
PATIENCE = 15.0


class Expected(NamedTuple):
    """A part of the work, and the seconds that it should take, or any other measure of its size."""

    phase: str
    label: str
    size: float


class ProgressReporter(Protocol):
    """Receives the progress of tasks, here (`StudyProgress`) or on another machine, and may ask them to stop."""

    def start(self, label: str, steps: int, done: int = 0, phase: str = "train") -> "ProgressTask":
        """Starts a task of ``steps`` steps, ``done`` of which were done earlier."""

    def report(self, task: "ProgressTask") -> None:
        """A task has advanced."""

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
        phase: what it is part of, such as "train".
        numbers: the latest numbers, to be shown.
        resumed_at: steps done before it was started.
        first_step: seconds from its start until its first step was done; 0 before that.
    """

    reporter: ProgressReporter
    label: str
    steps: int
    done: int
    phase: str = "train"
    numbers: str = ""
    resumed_at: int = field(init=False)
    first_step: float = field(default=0.0, init=False)
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        self.resumed_at, self._started = self.done, time.perf_counter()

    def update(self, done: int) -> None:
        """Reports that ``done`` steps are done."""
        self.done = done
        self.first_step = self.first_step or time.perf_counter() - self._started
        self.reporter.report(self)

    def advance(self) -> None:
        """Reports one more step."""
        self.update(self.done + 1)


@dataclass(eq=False)
class _Part:
    """A part of the work that has begun."""

    phase: str
    label: str
    size: float
    begun: float
    seen: float
    share: float = 0.0


class Forecast:
    """The time that is left, from the parts of the work that are still to do and the speed of those that are done.

    A part of size e that is done to a share s has e · c · (1 − s) seconds left. If sizes are seconds, the correction of
    all phases is c₀ = (P + Σ spent) / (P + Σ e s) with P = `PATIENCE`, and that of one phase is
    c = (P c₀ + Σ spent) / (P + Σ e s) over its parts. If they are not, c is Σ spent / Σ e s over all phases.

    Args:
        expected: the parts.
        timed: whether sizes are seconds.
        clock: the time in seconds.

    Example:
        >>> now = 0.0
        >>> forecast = Forecast([Expected("train", "depth 1", 60), Expected("draw", "", 10)], clock=lambda: now)
        >>> part = forecast.begin("train", "depth 1")
        >>> now = 58.0  # twice as slow as expected
        >>> forecast.advance(part, 28 / 60)
        >>> round(forecast.left())
        79
    """

    def __init__(
        self, expected: Iterable[Expected] = (), *, timed: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._expected = list(expected)
        self._timed = timed
        self._clock = clock
        self._begun: list[_Part] = []

    def expect(self, parts: Iterable[Expected]) -> None:
        """Adds parts that are still to do."""
        self._expected += parts

    def forget(self, label: str) -> None:
        """Forgets the parts with this label, and those whose label extends it."""
        self._expected = [part for part in self._expected if not _extends(part.label, label)]
        self._begun = [part for part in self._begun if not _extends(part.label, label)]

    def begin(self, phase: str, label: str) -> _Part:
        """A part begins; one that was not expected has no size."""
        known = next((part for part in self._expected if part[:2] == (phase, label)), None)
        if known is not None:
            self._expected.remove(known)
        now = self._clock()
        self._begun.append(_Part(phase, label, known.size if known else 0.0, now, now))
        return self._begun[-1]

    def advance(self, part: _Part, share: float) -> None:
        """A part is done to a share."""
        part.share, part.seen = share, self._clock()

    def left(self) -> float | None:
        """Seconds that are left; None where nothing tells."""
        now, running = self._clock(), [part for part in self._begun if part.share < 1]
        phases = {part.phase for part in self._expected} | {part.phase for part in running}
        known = {phase: c for phase in phases if (c := self._correction(phase)) is not None}
        sized = any(part.size for part in self._expected) or any(part.size for part in running)
        if not sized or len(known) < len(phases):
            return None
        rest = [part.size * known[part.phase] for part in self._expected]
        rest += [max(0.0, p.size * known[p.phase] * (1 - p.share) - (now - p.seen)) for p in running]
        return sum(rest) / max(1, len(running))

    def _correction(self, phase: str) -> float | None:
        spent, sizes = self._done([part for part in self._begun if part.size])
        if not self._timed:
            return spent / sizes if sizes else None
        of_all = (PATIENCE + spent) / (PATIENCE + sizes)
        spent, sizes = self._done([part for part in self._begun if part.phase == phase])
        return (PATIENCE * of_all + spent) / (PATIENCE + sizes)

    def _done(self, parts: Sequence[_Part]) -> tuple[float, float]:
        """Seconds that were spent on parts, and the size of what was done in them."""
        return sum(part.seen - part.begun for part in parts), sum(part.size * part.share for part in parts)


class StudyProgress:
    """Shows the progress of a study over all of its tasks.

    Args:
        expected: the parts of the work.
        timed: whether their sizes are seconds.
        quiet: show nothing.
    """

    def __init__(self, expected: Iterable[Expected] = (), *, timed: bool = True, quiet: bool = False) -> None:
        self.forecast = Forecast(expected, timed=timed)
        self._console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        # A bar in a notebook is a widget.
        widget = self._console.is_jupyter and find_spec("ipywidgets") is not None
        self._shown = not quiet and (self._console.is_terminal or widget)
        self._started = self._printed = time.monotonic()
        self._now, self._numbers = "", ""
        self._parts: dict[ProgressTask, _Part] = {}
        self._phase: _Part | None = None
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self._shown:
            self._live.start()
        else:
            self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._shown:
            self._live.stop()
        else:
            self._heart.join()

    def phase(self, phase: str, label: str = "") -> None:
        """A part of the work begins whose progress is not known until the next one begins."""
        self._end()
        self._phase = self._begin(phase, label)

    def start(self, label: str, steps: int, done: int = 0, phase: str = "train") -> ProgressTask:
        """Starts a task of ``steps`` steps, ``done`` of which were done earlier; training begins with compilation."""
        self._end(label)
        task = ProgressTask(self, label, steps, done, phase)
        self._parts[task] = self._begin("compile" if phase == "train" else phase, label)
        return task

    def report(self, task: ProgressTask) -> None:
        """Moves the bar."""
        part = self._parts.get(task)
        if part is None:  # forgotten
            return
        if part.phase == "compile":
            self.forecast.advance(part, 1.0)
            part = self._parts[task] = self._begin("train", task.label)
        self.forecast.advance(part, (task.done - task.resumed_at) / max(1, task.steps - task.resumed_at))
        self._now = f"{task.phase} {task.label}: {task.done:,} of {task.steps:,} steps"
        self._numbers = task.numbers

    def forget(self, label: str) -> None:
        """Forgets the tasks with this label, and those whose label extends it: their steps will be done again."""
        self._parts = {task: part for task, part in self._parts.items() if not _extends(task.label, label)}
        self.forecast.forget(label)

    def note(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        _LOG.info(text)
        self._printed = time.monotonic()
        self._console.print(self._printable(text), markup=False)

    def stop_requested(self) -> bool:
        """Never: signals stop this process."""
        return False

    def _printable(self, text: str) -> str:
        """A text with ? for what the encoding of the terminal lacks."""
        return text.encode(self._console.encoding, "replace").decode(self._console.encoding)

    def _begin(self, phase: str, label: str) -> _Part:
        self._now, self._numbers = f"{phase} {label}".strip(), ""
        if not self._shown:
            self.note(self._now)
        return self.forecast.begin(phase, label)

    def _end(self, label: str | None = None) -> None:
        """Ends the phase without steps, and the tasks with a label, of which one is done after the other."""
        parts = [part for task, part in self._parts.items() if task.label == label]
        for part in [self._phase, *parts]:
            if part is not None and part.share < 1:
                self.forecast.advance(part, 1.0)

    def _beat(self) -> None:
        """Prints a line now and then."""
        while not self._ended.wait(1.0):
            if time.monotonic() - self._printed >= INTERVAL:
                self.note("; ".join(filter(None, [self._now, self._numbers, self._time_left()])))

    def _time_left(self) -> str:
        left = self.forecast.left()
        return "" if left is None else f"about {duration(left)} left"

    def _render(self) -> Group:
        left, elapsed = self.forecast.left(), time.monotonic() - self._started
        bar = ProgressBar(1.0, 0 if left is None else elapsed / max(elapsed + left, 1e-9), 16, pulse=left is None)
        line = Table.grid(padding=(0, 1))
        line.add_column(width=16)
        line.add_column(width=21, no_wrap=True)
        line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_row(bar, self._time_left(), self._printable(self._now))
        return Group(line, Text(self._printable(self._numbers), no_wrap=True, overflow="ellipsis"))


def duration(seconds: float) -> str:
    """A rounded duration.

    Example:
        >>> [duration(seconds) for seconds in (0.2, 40, 137, 1000, 40_000, 4_000_000)]
        ['1 s', '40 s', '2 min 20 s', '17 min', '11.1 h', '46 days']
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 595:
        minutes, rest = divmod(round(seconds, -1), 60)
        return f"{minutes:.0f} min {rest:.0f} s" if rest else f"{minutes:.0f} min"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86_400:,.0f} days"


def _extends(label: str, other: str) -> bool:
    return f"{label}, ".startswith(f"{other}, ")
