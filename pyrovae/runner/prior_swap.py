"""Prior swap: another p(z) for a trained pair, fitted to its frozen encodings q(z|x)."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovae.build import assemble
from pyrovae.errors import InputError, UnsupportedError
from pyrovae.estimators.prior_fit import fit_prior
from pyrovae.measures.encodings import encode
from pyrovae.programs.pair import Bank, Pair
from pyrovae.system.progress import ProgressTask
from pyrovae.training.lockstep import Lockstep
from pyrovae.training.precision import matmul_precision
from pyrovae.training.trainer import Training


@matmul_precision("float32")
def with_prior(prior: str, training: Training, task: ProgressTask) -> Lockstep:
    """The trained runs of a cohort with another prior, fitted to their encodings."""
    pairs = []
    for number, run in enumerate(training.cohort.runs):
        images = training.data.of(number).train
        if run.pair is not None:
            raise InputError(f"prior: expected a model with a separate prior, got the pair '{run.pair}'")
        trained = training.lockstep.pair(number)
        pair = assemble(run.model_copy(update={"prior": prior}), images.shape[1:], images=images).to(images.device)
        swapped: Any = pair.model.prior
        if list(swapped.parameters()) and isinstance(swapped, Bank):
            raise InputError(
                f"prior: expected one that can be fitted to frozen encodings, got '{prior}', which learns from "
                "encodings that change; train with it, as in --set prior=…"
            )
        adopt(pair, trained)
        pair.refresh(images)
        try:
            q = encode(trained, images, **training.lockstep.values_of(number))
        except UnsupportedError as error:
            raise InputError(f"prior: expected pairs whose prior can be swapped, but {error}") from None
        fit_prior(swapped, q, run.seed, task.advance)
        pairs.append(pair)
    lockstep = Lockstep(pairs, training.lockstep.values)
    lockstep.mode = training.lockstep.mode
    return lockstep


def check_same_distortion(before: NDArray[np.float64], after: NDArray[np.float64]) -> None:
    """Raises RuntimeError if a swapped prior changed the distortion, which does not depend on it."""
    if not np.allclose(before, after, rtol=1e-4, equal_nan=True):
        raise RuntimeError(
            f"the swapped prior changed the distortion, by up to {np.nanmax(abs(before - after)):.3g} nats"
        )


def adopt(pair: Pair, trained: Pair) -> None:
    """Copies all parameters and buffers of a trained pair, except those of the prior, which may have another type."""
    states = [dict([*each.named_parameters(), *each.named_buffers()]) for each in (pair, trained)]
    with torch.no_grad():
        for name in states[0].keys() & states[1].keys():
            if not name.startswith("model.prior."):
                states[0][name].data = states[1][name].clone()
