"""The finding about capacity: at a small β, deeper networks generalize better."""

from collections.abc import Iterator

from pyrovae.analysis.findings.cells import StudyCells
from pyrovae.analysis.findings.statistics import Contrast, Finding, contrast


def deeper_network(study: StudyCells) -> Iterator[Contrast]:
    """D_test(fewest layers) − D_test(most layers) at the lowest β, for every other setting of the grid."""
    depths = study.values("depth")
    if len(depths) > 1:
        shallow, deep, beta = depths[0], depths[-1], study.values("beta")[0]
        for where, cell in study.along("depth", beta=beta):
            distortion = cell["distortion"]
            sides = distortion.sel(depth=shallow), distortion.sel(depth=deep)
            yield contrast(where, *sides, beta=beta, shallow=shallow, deep=deep)


FINDINGS = (
    Finding(
        3,
        "At β = {beta:g} the {deep:g}-layer network has a lower test distortion than the {shallow:g}-layer one",
        deeper_network,
    ),
)
