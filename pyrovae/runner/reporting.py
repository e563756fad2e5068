"""Figures and reports of studies."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from pyrovae.errors import InputError
from pyrovae.runner.open import open_results
from pyrovae.store.layout import kept_for
from pyrovae.store.results import Results, study_in
from pyrovae.system import atomic

#: The report's name in the folder of a study.
REPORT = "report.html"


def draw(results: Results) -> None:
    """Writes the figures and the report of a study into its folder; without the packages that draw, it says so."""
    try:
        from pyrovae.analysis import figures
        from pyrovae.analysis.report import page
    except ModuleNotFoundError as error:
        warnings.warn(f"no figures and no report are drawn: {error}", stacklevel=2)
        return
    drawn = figures.save(results, results.folder / "figures")
    page.save({results.folder.resolve().name: results}, drawn, figures.dark_pictures(results), results.folder / REPORT)


def draw_again(folder: str | Path) -> Path:
    """Writes the figures and the report of a study again, and returns the path of the report.

    Raises:
        InputError: the folder holds no study, or a file in it is damaged.
    """
    if not kept_for(folder):
        study_in(Path(folder))  # otherwise the lock would create the folder
    with atomic.locked(Path(folder)):
        draw(open_results(folder))
    return Path(folder) / REPORT


def compare(folders: Sequence[str | Path], out: str | Path = "runs/comparison") -> dict[str, Results]:
    """Compares several studies in joint figures and one report.

    Args:
        folders: their folders, at least two.
        out: folder for the figures and the report.

    Returns:
        The results by study, under the names in the report: the folder's name, or its path if several folders have it.

    Raises:
        InputError: there are fewer than two studies, a folder holds none or a damaged one, or ``out`` holds a study.

    Example:
        >>> from pyrovae import Study, run
        >>> tiny = {"steps": 2, "depth": 1, "width": 8, "train_images": 64, "test_images": 64, "seed": 0}
        >>> for beta in (0.1, 1):
        ...     _ = run(Study.load("quick", **tiny, beta=[beta]), out=tmp_path / f"beta-{beta}", quiet=True)
        >>> found = compare([tmp_path / "beta-0.1", tmp_path / "beta-1"], out=tmp_path / "both")
        >>> list(found), (tmp_path / "both/report.html").exists()
        (['beta-0.1', 'beta-1'], True)
    """
    from pyrovae.analysis import figures
    from pyrovae.analysis.report import page
    from pyrovae.analysis.report.comparison import Comparison

    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise InputError(f"expected the folders of at least two studies, got {', '.join(map(str, paths)) or 'none'}")
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError(f"expected different folders, got one of them twice: {', '.join(map(str, folders))}")
    if (Path(out) / "study.yaml").exists():
        raise InputError(f"{out}: expected a folder for the comparison, got that of a study; choose another --out")
    for path in (*paths, Path(out)):
        atomic.check_name(path)
    names = [path.resolve().name for path in paths]
    labels = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    found = {label: open_results(path) for label, path in zip(labels, paths, strict=True)}
    together = Comparison({label: each.tree for label, each in found.items()})
    page.save(found, figures.save(together, Path(out)), figures.dark_pictures(together), Path(out) / REPORT)
    return found
