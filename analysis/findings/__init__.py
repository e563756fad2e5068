"""Findings about generalization, each tested on the study at hand with an interval and a verdict."""

import json

from pyrovae.analysis.findings import beta, depth, equal_rate, generalization, information, memorisation, priors
from pyrovae.analysis.findings.cells import StudyCells
from pyrovae.analysis.findings.verdicts import Finding, Verdicts, decide
from pyrovae.store.results import Evaluation

#: All findings, in the order of reports.
FINDINGS: tuple[Finding, ...] = (
    *priors.FINDINGS,
    *beta.FINDINGS,
    *depth.FINDINGS,
    *equal_rate.FINDINGS,
    *information.FINDINGS,
    *memorisation.FINDINGS,
    *generalization.FINDINGS,
)


def findings(results: Evaluation) -> Verdicts:
    """The findings that a study can test, each with its verdicts, which hold jointly.

    Runs that diverged or are not done are left out; a verdict that rests on one of them is undecided.

    Args:
        results: the results of a study, or of a later evaluation of it. If this applied some measures only, the
            findings are those that these decide.

    Example:
        >>> from pyrovae import Study
        >>> from pyrovae.store import schema
        >>> nothing = schema.empty(Study(name="mine", beta=[0.1, 1]))
        >>> verdict, *_ = findings(Evaluation(nothing, tmp_path))
        >>> print(verdict.text, "–", verdict.outcome)
        Lowering β from 1 to 0.1 lowers the test distortion – undecided
    """
    study = StudyCells.of(results)
    only = json.loads(results.tree.attrs.get("only", "[]"))
    tested = [each for each in FINDINGS if not only or each.measure in only]
    found = [(finding, contrast) for finding in tested for contrast in finding.contrasts(study)]
    return Verdicts(decide(found, study.sources))
