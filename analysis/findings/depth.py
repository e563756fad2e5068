"""The finding about capacity: at a small β, deeper networks generalize better."""

from collections.abc import Iterator

from pyrovae.analysis.findings.cells import StudyCells
from pyrovae.analysis.findings.verdicts import Contrast, Finding


def deeper_network(study: StudyCells) -> Iterator[Contrast]:
    """D_test(fewest layers) − D_test(most layers) at the lowest β, for every other setting of the grid."""
    depths, betas = study.values("depth"), study.values("beta")
    if len(depths) > 1 and betas:
        shallow, deep, beta = depths[0], depths[-1], betas[0]
        for where, cell in study.along("depth", beta=beta):
            terms = {"beta": beta, "shallow": shallow, "deep": deep}
            yield study.contrast(where, cell["distortion"], "depth", {shallow: 1, deep: -1}, **terms)


FINDINGS = (
    Finding(
        3,
        "At β = {beta:g} the {deep:g}-layer network has a lower test distortion than the {shallow:g}-layer one",
        "{deep:g} layers instead of {shallow:g} at β = {beta:g}",
        deeper_network,
        falls="test distortion is lower",
        rises="test distortion is higher",
    ),
)
