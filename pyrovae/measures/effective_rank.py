"""Effective rank of the posterior means: the number of latent directions that the codes of a run use."""

import torch

from pyrovae.measures.measure import MeasureResult, Quantity, TrainedRun

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
    covariance = torch.atleast_2d(run.encodings.train.mean.flatten(1).T.cov())
    if not covariance.isfinite().all():
        return MeasureResult(effective_rank=torch.nan)
    eigenvalues = torch.linalg.eigvalsh(covariance).clamp(min=0)
    return MeasureResult(effective_rank=torch.special.entr(eigenvalues / eigenvalues.sum()).sum().exp())
