"""Where a study keeps what: a folder for each run, and the moving checkpoints of the cohorts at work."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

#: The folders of runs, of moving checkpoints, and of later evaluations.
RUNS, TRAINING, EVALUATIONS = "runs", "training", "evaluations"
#: The group of a tree that holds values per image.
IMAGES = "images"
#: The log of a study that trains: one line of JSON for each run at each point of its learning curves.
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run.

    Attributes:
        path: ``runs/KEY`` in the folder of a study.
    """

    path: Path

    @classmethod
    def of(cls, study: Path, key: str) -> "RunFolder":
        """The folder of the run with a key."""
        return cls(study / RUNS / key)

    @property
    def settings(self) -> Path:
        """The settings of the run, to be read by people."""
        return self.path / "run.yaml"

    @property
    def weights(self) -> Path:
        """Weights, buffers, moments of Adam, and the step reached."""
        return self.path / "weights.safetensors"

    def record(self, evaluation: str = "") -> Path:
        """The record of what was measured after training, or in a later evaluation."""
        return self.path / EVALUATIONS / f"{evaluation}.nc" if evaluation else self.path / "record.nc"

    def stamps(self) -> Iterator[tuple[str, str]]:
        """The later evaluations that there are, "" for the run's own record, and what changes when their files do."""
        files = [("", self.record())] if self.record().exists() else []
        files += [(file.stem, file) for file in sorted((self.path / EVALUATIONS).glob("[!.]*.nc"))]
        for name, file in files:
            stat = file.stat()
            yield name, f"{stat.st_size} {stat.st_mtime_ns}"


def settings_files(study: Path) -> list[Path]:
    """The files with the settings of all runs."""
    return sorted((study / RUNS).glob("[!.]*/run.yaml"))


def moving_checkpoint(study: Path, cohort: str) -> Path:
    """The checkpoint of a cohort at work."""
    return study / TRAINING / f"{cohort}.safetensors"


def moving_checkpoints(study: Path) -> list[Path]:
    """The checkpoints of all cohorts at work."""
    return sorted((study / TRAINING).glob("[!.]*.safetensors"))


def kept() -> dict[str, Path]:
    """The results that are installed with the package, without weights, by the name of the study."""
    folder = Path(str(resources.files("pyrovae.analysis"))) / "results"
    return {file.stem: file for file in sorted(folder.glob("*.nc"))}


def kept_for(study: str | Path) -> Path | None:
    """The kept results of a name, if no folder of that name holds a study."""
    return None if (Path(study) / "study.yaml").exists() else kept().get(str(study))
