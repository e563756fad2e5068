"""The result of an estimator: a value, its standard error, and whether it is a bound."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

#: How the expectation of an estimate relates to the quantity that it is named after.
Kind = Literal["exact", "unbiased", "lower bound", "upper bound", "approximate"]


@dataclass(frozen=True)
class Estimate:
    """An estimate, in nats per image unless stated otherwise.

    Attributes:
        value: the estimate.
        se: standard error over images.
        kind: whether it estimates the quantity itself or a bound on it.
        notes: caveats, such as "saturated at log N".

    Example:
        >>> print(Estimate(8.318, 0.0002, "unbiased", ("saturated at log N",)))
        8.318 ± 0.000 (unbiased; saturated at log N)
    """

    value: float
    se: float
    kind: Kind
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.se:.3f} ({'; '.join([self.kind, *self.notes])})"


def mean_over_images(values: Tensor, kind: Kind, *notes: str) -> Estimate:
    """The mean of one value per image, ``[n]``, with its standard error s / √n (NaN for a single image)."""
    se = values.std().item() / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Estimate(values.mean().item(), se, kind, notes)
