"""Findings at equal rate, where training moved β for a target rate."""

from collections.abc import Iterator

from pyrovae.analysis.findings.cells import StudyCells
from pyrovae.analysis.findings.verdicts import Contrast, Finding

#: Why there is no verdict.
MISSED = "a run missed its target rate"


def higher_rate(study: StudyCells) -> Iterator[Contrast]:
    """D_test(lowest target rate) − D_test(highest target rate), for every other setting of the grid."""
    yield from _ends(study, "target_rate")


def deeper_network(study: StudyCells) -> Iterator[Contrast]:
    """D_test(fewest layers) − D_test(most layers) at each target rate, for every other setting of the grid."""
    if study.values("target_rate"):
        yield from _ends(study, "depth")


def _ends(study: StudyCells, axis: str) -> Iterator[Contrast]:
    """D_test at the lowest value of an axis − D_test at the highest one."""
    values = study.values(axis)
    if len(values) > 1:
        low, high = values[0], values[-1]
        for where, cell in study.along(axis):
            if cell["missed"].sel({axis: [low, high]}).any():
                yield Contrast(where, note=MISSED, terms={"low": low, "high": high})
            else:
                yield study.contrast(where, cell["distortion"], axis, {low: 1, high: -1}, low=low, high=high)


FINDINGS = (
    Finding(
        None,
        "Raising the rate from {low:g} to {high:g} nats lowers the test distortion",
        "R {low:g} → {high:g}",
        higher_rate,
    ),
    Finding(
        None,
        "At equal rate the {high:g}-layer network has a lower test distortion than the {low:g}-layer one",
        "{high:g} layers instead of {low:g} at equal rate",
        deeper_network,
        falls="test distortion is lower",
        rises="test distortion is higher",
    ),
)
