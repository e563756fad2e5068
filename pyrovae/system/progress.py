"""What a person sees while a study runs: a progress bar, or plain lines where there is no terminal."""

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Watcher(Protocol):
    """Is told how a piece of work goes, and says whether it is to go on."""

    def stepped(self, step: int) -> None:
        """``step`` steps are done."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def stopped(self) -> bool:
        """Whether the work is to stop."""


class Watching(Protocol):
    """Is told of all the work on a cohort, piece by piece."""

    def begin(self, label: str, steps: int, done: int) -> Watcher:
        """A piece of ``steps`` steps begins, of which ``done`` were done before and are no work to come."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def stopped(self) -> bool:
        """Whether the work is to stop."""


class Watch:
    """Shows the steps of a whole study, over all of its cohorts.

    Args:
        total: steps of all cohorts together.
        quiet: show nothing.
    """

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            speed_estimate_period=60,
        )
        self._task = self._bar.add_task("", total=total)
        self._total = total
        self._pieces: list[Piece] = []

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, label: str, steps: int, done: int) -> "Piece":
        """A piece of ``steps`` steps begins, of which ``done`` were done before and are no work to come."""
        self.more(-done)
        piece = Piece(self, label, steps, done)
        self._pieces.append(piece)
        self.show(piece)
        return piece

    def drop(self, label: str) -> None:
        """What was shown under a label, or is a part of it, is all to come again."""
        dropped = [piece for piece in self._pieces if f"{piece.label}, ".startswith(f"{label}, ")]
        self._pieces = [piece for piece in self._pieces if piece not in dropped]
        self.more(sum(piece.begun for piece in dropped))

    def more(self, steps: int) -> None:
        """There are more steps to come than was thought."""
        self._total += steps
        self._bar.update(self._task, total=self._total)

    def show(self, piece: "Piece") -> None:
        """Shows how far the study is, and what was told last."""
        done = sum(each.step - each.begun for each in self._pieces)
        self._bar.update(self._task, description=piece.label, completed=done)

    def note(self, text: str) -> None:
        """One line above the bar."""
        self._bar.console.print(text, markup=False)

    def stopped(self) -> bool:
        """Never: who looks on stops the process itself."""
        return False

    def time_left(self) -> str:
        """What is left of the study at its present speed, for the end of a line."""
        seconds = self._bar.tasks[0].time_remaining
        return "" if seconds is None else f", about {seconds:.0f} s left in all"


class Piece:
    """A piece of work that a `Watch` shows.

    Attributes:
        begun: steps that were done before it began.
        step: steps done.
    """

    def __init__(self, watch: Watch, label: str, steps: int, done: int) -> None:
        self.watch = watch
        self.label = label
        self.steps = steps
        self.step = self.begun = done

    def stepped(self, step: int) -> None:
        """``step`` steps are done. Where there is no terminal, some of them make a line."""
        lines = [self.begun + 100, *range(0, self.steps + 1, max(1, self.steps // 5))]
        due = any(self.step < line <= step for line in lines)
        self.step = step
        self.watch.show(self)
        if due and not self.watch.console.is_terminal:
            self.note(f"{self.label}: {step:,} of {self.steps:,} steps{self.watch.time_left()}")

    def note(self, text: str) -> None:
        """One line above the bar."""
        self.watch.note(text)

    def stopped(self) -> bool:
        """As of the whole."""
        return self.watch.stopped()


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} steps/s" if task.speed else "")
