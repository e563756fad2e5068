"""Findings about β: a smaller one generalizes better, a larger one underfits."""

from collections.abc import Iterator

from pyrovae.analysis.findings.cells import StudyCells
from pyrovae.analysis.findings.verdicts import Contrast, Finding


def smaller_beta(study: StudyCells) -> Iterator[Contrast]:
    """D_test(β = 1) − D_test(lowest β), for every other setting of the grid."""
    betas = study.values("beta")
    if 1.0 in betas and betas[0] < 1:
        for where, cell in study.along("beta"):
            yield study.contrast(where, cell["distortion"], "beta", {1.0: 1, betas[0]: -1}, low=betas[0])


def larger_beta(study: StudyCells) -> Iterator[Contrast]:
    """D_train(highest β) − D_train(β = 1), for every other setting of the grid."""
    betas = study.values("beta")
    if 1.0 in betas and betas[-1] > 1:
        for where, cell in study.along("beta", split="train"):
            yield study.contrast(where, cell["distortion"], "beta", {betas[-1]: 1, 1.0: -1}, high=betas[-1])


FINDINGS = (
    Finding(4, "Lowering β from 1 to {low:g} lowers the test distortion", "β 1 → {low:g}", smaller_beta),
    Finding(
        5,
        "Raising β from 1 to {high:g} underfits: the training distortion grows too",
        "β 1 → {high:g}",
        larger_beta,
        falls="training distortion rises",
        rises="training distortion falls",
    ),
)
