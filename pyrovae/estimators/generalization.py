"""The generalization gap of the ELBO, split into the parts of decoder and guide."""

from typing import NamedTuple

from torch import Tensor

from pyrovae.estimators.estimate import Estimate, Kind


class GeneralizationGap(NamedTuple):
    """ELBO train − ELBO test and its parts, in nats per image.

    Attributes:
        elbo: the gap, the sum of both parts.
        decoder: log p(x) of the training images minus that of the test images.
        guide: log p(x) − ELBO of the test images minus that of the training images.
    """

    elbo: Estimate
    decoder: Estimate
    guide: Estimate


def generalization_gap(elbo: tuple[Tensor, Tensor], inference_gap: tuple[Tensor, Tensor]) -> GeneralizationGap:
    """Splits the gap of the ELBO between training and test images into the parts of decoder and guide.

    ELBO_train − ELBO_test = [log p(x)_train − log p(x)_test] + [Δ_test − Δ_train], with Δ = log p(x) − ELBO.

    Δ varies far less between images than log p(x) does, so it is averaged over a few images, and the ELBO over many:
    the mean log p(x) of a split is the mean ELBO of all its images plus the mean Δ of the first of them.

    Args:
        elbo: −D − R of the training and the test images, ``[N]`` each.
        inference_gap: Δ of the first images of each, ``[n]`` with n ≤ N. From a lower bound of log p(x), it is too
            small, and only the difference of this error between train and test remains.

    Source: Zhang, Hayes & Barber 2022, Generalization gap in amortized inference, NeurIPS.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> elbo = (10 * torch.randn(1000) - 40, 10 * torch.randn(1000) - 43)
        >>> gap = generalization_gap(elbo, (torch.rand(50), torch.rand(50) + 1))
        >>> print(gap.guide)
        0.988 ± 0.055 (approximate)
        >>> bool(abs(gap.decoder.value + gap.guide.value - gap.elbo.value) < 1e-4)
        True
    """
    whole = _difference(*(_mean(of, of[:0]) for of in elbo), kind="unbiased")
    guide = _difference(*(_mean(gap, gap[:0]) for gap in inference_gap[::-1]))
    splits = zip(elbo, inference_gap, strict=True)
    decoder = _difference(*(_mean(gap + len(gap) / len(of) * of[: len(gap)], of[len(gap) :]) for of, gap in splits))
    return GeneralizationGap(whole, decoder, guide)


def _mean(few: Tensor, others: Tensor) -> tuple[float, float]:
    """The mean of a few values, plus the share of all that the others are times their mean; and its variance."""
    share = len(others) / (len(few) + len(others))
    rest = share * others.double()
    value = few.double().mean() + (rest.mean() if len(rest) else 0.0)
    variance = few.double().var() / len(few) + (rest.var() / len(rest) if len(rest) > 1 else 0.0)
    return float(value), float(variance)


def _difference(one: tuple[float, float], other: tuple[float, float], *, kind: Kind = "approximate") -> Estimate:
    """The difference of two independent means."""
    return Estimate(one[0] - other[0], (one[1] + other[1]) ** 0.5, kind)
