"""Prior swap: another p(z) for a trained pair, fitted to its frozen encodings q(z|x)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.build import assemble
from pyrovae.errors import InputError, UnsupportedError
from pyrovae.estimators.marginal import device_of
from pyrovae.measures.encodings import encode
from pyrovae.programs.distributions import mapped, noise_shape, reparameterize
from pyrovae.programs.noise import generator
from pyrovae.programs.pair import Bank, Pair
from pyrovae.system.progress import ProgressTask
from pyrovae.training.lockstep import Lockstep
from pyrovae.training.precision import matmul_precision
from pyrovae.training.trainer import Training

#: Steps of Adam, draws of z per step, and the initial step size, which a cosine schedule lowers to zero.
STEPS, DRAWS, LEARNING_RATE = 2000, 256, 0.01


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
        fit_prior(pair, q, run.seed, task.advance)
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


def fit_prior(pair: Pair, q: Distribution, seed: int, stepped: Callable[[], None] = lambda: None) -> None:
    """Fits p(z) to frozen encodings: max_p E_q(z)[log p(z)], which is min_p KL(q(z) ‖ p(z)), the prior gap G.

    The training rate changes by as much as G, and D does not change. A prior without parameters, such as the aggregate
    posterior, needs no fit.

    Args:
        pair: the pair whose model's ``prior`` is fitted; nothing else changes.
        q: encodings of the training images, batch shape [N].
        seed: seed of the run.
        stepped: called after every step.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> from pyrovae import Run, make_pair
        >>> pair = make_pair(Run(prior="diagonal", depth=1, width=8, latent_size=1), (1, 8, 8))
        >>> q = Independent(Normal(torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1)), 1)
        >>> fit_prior(pair, q, seed=0)
        >>> bool((pair.model.prior().stddev - 10**0.5).abs() < 0.1)
        True
    """
    prior = pair.model.prior
    parameters = list(prior.parameters())  # type: ignore[union-attr]
    if not parameters:
        return
    draws = generator(seed, "swap")
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    q = mapped(q, Tensor.detach)
    if hasattr(prior, "start_at"):
        prior.start_at(_draw(q, draws))  # type: ignore[operator]
    for _ in range(STEPS):
        loss = -prior().log_prob(_draw(q, draws)).mean()  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        optimizer.step()
        schedule.step()
        stepped()


def _draw(q: Distribution, generator: torch.Generator) -> Tensor:
    """Draws from the inference marginal q(z), ``[DRAWS, *event_shape]``."""
    rows = torch.randint(q.batch_shape[0], (DRAWS,), generator=generator)
    chosen = mapped(q, lambda parameter: parameter[rows.to(parameter.device)])
    shape = noise_shape(chosen)
    assert shape is not None, "encodings are reparameterized from normal noise"
    noise = torch.randn(shape, generator=generator)
    return reparameterize(chosen, noise.to(device_of(q)))
