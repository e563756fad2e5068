"""References of what a study uses, as BibTeX."""

import re
from collections.abc import Iterable
from importlib import resources

from pyrovae.study import Study

_ENTRY = re.compile(r"^@\w+\{.*?^\}$", re.MULTILINE | re.DOTALL)
_USED_BY = re.compile(r"^  usedby = \{(.*)\},\n", re.MULTILINE)


def bibtex(studies: Iterable[Study]) -> str:
    """The references of what some studies use, and no others, as BibTeX.

    Example:
        >>> study = Study.load("quick")
        >>> "VampPrior" in bibtex([study]), "VampPrior" in bibtex([study.replace(prior="vamp")])
        (False, True)
    """
    uses = {"all", *(use for study in studies for use in _uses(study))}
    cited = []
    for entry in entries():
        used_by = _USED_BY.search(entry)
        if used_by and uses & set(used_by[1].split(", ")):
            cited.append(_USED_BY.sub("", entry))
    return "\n\n".join(cited)


def entries() -> list[str]:
    """All entries, each with its field ``usedby``."""
    return _ENTRY.findall((resources.files("pyrovae.analysis.report") / "references.bib").read_text(encoding="utf-8"))


def _uses(study: Study) -> Iterable[str]:
    for run in study.runs():
        yield from (f"{kind}={run.component(kind).name}" for kind in run.kinds)
        yield from (["warmup"] if run.warmup else [])
        yield from (["cycles"] if run.cycles > 1 else [])
    yield from (["annealing"] if study.measure.temperatures else [])
