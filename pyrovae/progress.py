"""What a person sees while a study runs: a progress bar, or plain lines where there is no terminal."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} steps/s" if task.speed else "")


class Watch:
    """Shows the steps of a whole study, cohort after cohort.

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
        self._before = self._steps = self._done = 0
        self._label = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, label: str, steps: int, done: int) -> None:
        """A cohort of ``steps`` steps begins, of which ``done`` were done before and are no work to come."""
        self._label, self._steps, self._done = label, steps, done
        self._total -= done
        self._bar.update(self._task, description=label, total=self._total)

    def more(self, steps: int) -> None:
        """There are more steps to come than was thought."""
        self._total += steps
        self._bar.update(self._task, total=self._total)

    def stepped(self, step: int) -> None:
        """``step`` steps of this cohort are done."""
        self._bar.update(self._task, completed=self._before + step - self._done)
        if not self.console.is_terminal and (step == self._done + 100 or step % max(1, self._steps // 5) == 0):
            self.note(f"{self._label}: {step:,} of {self._steps:,} steps{self._time_left()}")

    def end(self) -> None:
        """The cohort is trained."""
        self._before += self._steps - self._done

    def note(self, text: str) -> None:
        """One line above the bar."""
        self._bar.console.print(text, markup=False)

    def _time_left(self) -> str:
        seconds = self._bar.tasks[0].time_remaining
        return "" if seconds is None else f", about {seconds:.0f} s left in all"
