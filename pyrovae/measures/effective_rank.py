"""Effective rank of the posterior means: the number of latent directions that the codes of a run use."""

import torch

from pyrovae.errors import UnsupportedError
from pyrovae.measures.measure import MeasureResult, Quantity, TrainedRun
from pyrovae.programs.distributions import mean_of

QUANTITIES = (
    Quantity(
        "effective_rank",
        "effective rank of the posterior means of training images",
        unit="1",
        kind="exact",
        heading="effective rank",
    ),
)


def measure(run: TrainedRun) -> MeasureResult:
    """exp H(λ / Σλ), with λ the eigenvalues of the covariance of E_q(z|x)[z] over training images.

    It lies between 1 and the number of latent dimensions, and is NaN if the means are not finite or all equal (Roy and
    Vetterli 2007).
    """
    means = mean_of(run.encodings.train)
    if means is None:
        raise UnsupportedError("the mean of q(z|x) has no closed form")
    covariance = torch.atleast_2d(means.flatten(1).T.cov())
    if not covariance.isfinite().all():
        return MeasureResult(effective_rank=torch.nan)
    eigenvalues = torch.linalg.eigvalsh(covariance).clamp(min=0)
    return MeasureResult(effective_rank=torch.special.entr(eigenvalues / eigenvalues.sum()).sum().exp())
