"""Findings, their contrasts, and the verdicts that a study gives on all of them jointly."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, log10
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from pyrovae.analysis.findings.statistics import ALPHA, MOST_SEEDS, Effect, adjusted

if TYPE_CHECKING:
    from pyrovae.analysis.findings.cells import StudyCells

Outcome = Literal["supported", "contradicted", "no meaningful difference", "undecided"]
#: Why a contrast has no effect.
UNFINISHED = "some runs are not done yet, have diverged or missed their target rate, or have values that are not finite"


@dataclass(frozen=True)
class Contrast:
    """A difference of means that a finding predicts to be positive.

    Attributes:
        where: the cell of the grid, such as "depth 3".
        effect: the difference and its errors.
        note: why there is no verdict.
        unit: unit of the effect.
        terms: values for the placeholders in the text of the finding.
    """

    where: str
    effect: Effect = field(default_factory=Effect)
    note: str = ""
    unit: str = "nats"
    terms: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """A statement that a study can test.

    Attributes:
        number: its place among the findings of the paper; None for a question that the paper leaves open.
        text: the statement, with placeholders for the terms of its contrasts.
        compared: what is compared, in a few words with placeholders, before the change.
        contrasts: the cells of a study → the contrasts that should be positive, none if the study cannot test it.
        falls, rises: what a positive and a negative effect mean, in words before "by 3.1 nats".
        measure: the measure whose numbers decide, if it is not one of every study.
    """

    number: int | None
    text: str
    compared: str
    contrasts: Callable[["StudyCells"], Iterable[Contrast]]
    falls: str = "test distortion falls"
    rises: str = "test distortion rises"
    measure: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a study says of a finding: one of its contrasts, and how it turned out.

    Attributes:
        p_different, p_equivalent: adjusted p-values of a difference and of equivalence; NaN if there is no test.
        tests: number of contrasts that were tested jointly.
        sources: what the error covers, such as "images and 3 seeds, for this training set".
    """

    finding: Finding
    contrast: Contrast
    p_different: float
    p_equivalent: float
    tests: int
    sources: str

    def __str__(self) -> str:
        where = f" ({self.contrast.where})" if self.contrast.where else ""
        return f"{self.outcome}: {self.text}{where}: {self.words}"

    @property
    def text(self) -> str:
        """The finding with the values of this study."""
        return self.finding.text.format(**self.contrast.terms)

    @property
    def outcome(self) -> Outcome:
        """The verdict at a joint error of 5% over all contrasts of the study."""
        if self.p_equivalent < ALPHA:
            return "no meaningful difference"
        if self.p_different < ALPHA:
            return "supported" if self.contrast.effect.estimate > 0 else "contradicted"
        return "undecided"

    @property
    def summary(self) -> str:
        """The comparison and its effect in one short line, or why there is none."""
        compared = self.finding.compared.format(**self.contrast.terms)
        place = f"{self.contrast.where}, {compared}" if self.contrast.where else compared
        if self.contrast.note:
            return f"{place}: {self.contrast.note}"
        if not self.contrast.effect.is_known:
            return f"{place}: {self._change}; one seed decides nothing"
        more = ""
        if self.outcome == "contradicted":
            more = f" (expected: {self.finding.falls.format(**self.contrast.terms)})"
        elif self.outcome == "undecided" and (needed := self.contrast.effect.seeds_needed(self.tests)):
            more = f"; about {needed} seeds in all would be enough"
        return f"{place}: {self._change}{more}"

    @property
    def words(self) -> str:
        """The effect in words, with its interval, or why there is none; and for an undecided one what it would take."""
        effect, unit = self.contrast.effect, self.contrast.unit
        if self.contrast.note:
            return self.contrast.note
        said = f"{self._change} (95% over {self.sources})"
        if not effect.is_known:
            return f"{said}; one seed decides nothing"
        if self.outcome != "undecided":
            return said
        needed = effect.seeds_needed(self.tests)
        seeds = f"about {needed} seeds in all" if needed else f"over {MOST_SEEDS} seeds, or more images,"
        return (
            f"{said}; {rounded(effect.detectable(self.tests))} {unit} or more could have been detected, and {seeds} "
            "would be enough for this effect"
        )

    @property
    def _change(self) -> str:
        """The effect in words, with its interval."""
        effect = self.contrast.effect
        change = self.finding.falls if effect.estimate > 0 else self.finding.rises
        size = rounded(abs(effect.estimate), effect.half_width)
        return f"{change.format(**self.contrast.terms)} by {size} {self.contrast.unit}"


class Verdicts(tuple[Verdict, ...]):
    """The verdicts of a study, which hold jointly; one line for each when printed."""

    def frame(self) -> pd.DataFrame:
        """One row for each verdict: the finding, where, the outcome, the effect with its interval, and its p-values."""
        return pd.DataFrame(
            {
                "finding": verdict.text,
                "where": verdict.contrast.where,
                "outcome": verdict.outcome,
                "effect": verdict.contrast.effect.estimate,
                "half_width": verdict.contrast.effect.half_width,
                "unit": verdict.contrast.unit,
                "p_different": verdict.p_different,
                "p_equivalent": verdict.p_equivalent,
                "note": verdict.contrast.note,
            }
            for verdict in self
        )

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "no finding that this study can test"

    def _repr_html_(self) -> str:
        return self.frame().to_html(index=False, float_format="{:.3g}".format)


def decide(found: Sequence[tuple[Finding, Contrast]], sources: str) -> list[Verdict]:
    """The verdicts on contrasts that are tested jointly.

    Args:
        sources: what the errors cover.
    """
    tested = [contrast for _, contrast in found if not contrast.note and contrast.effect.is_known]
    p_values = adjusted([(each.effect.p_different, each.effect.p_equivalent) for each in tested])
    of_contrast = {id(contrast): p for contrast, p in zip(tested, p_values, strict=True)}
    unknown = (float("nan"), float("nan"))
    return [
        Verdict(finding, contrast, *of_contrast.get(id(contrast), unknown), len(tested), sources)
        for finding, contrast in found
    ]


def rounded(value: float, error: float | None = None) -> str:
    """A value, with the half width of its interval if it has one, to two digits of the error, one decimal at least.

    Example:
        >>> rounded(0.0123, 0.0045), rounded(12.34, 6.7), rounded(0.0123)
        ('0.0123 ± 0.0045', '12.3 ± 6.7', '0.012')
    """
    scale = value if error is None else error
    digits = max(1, 1 - floor(log10(abs(scale)))) if scale else 1
    return f"{value:.{digits}f}" if error is None else f"{value:.{digits}f} ± {error:.{digits}f}"
