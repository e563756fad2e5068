"""Fits a prior to encodings that do not change."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.estimators.marginal import device_of
from pyrovae.programs.distributions import mapped, noise_shape, reparameterize
from pyrovae.programs.noise import generator

#: Steps of Adam, draws of z per step, and the initial step size, which a cosine schedule lowers to zero.
STEPS, DRAWS, LEARNING_RATE = 2000, 256, 0.01


@torch.enable_grad()
def fit_prior(prior: Any, q: Distribution, seed: int, stepped: Callable[[], None] = lambda: None) -> None:
    """Fits p(z) to frozen encodings: max_p E_q(z)[log p(z)], which is min_p KL(q(z) ‖ p(z)), the prior gap G.

    A prior with a method ``fit_loss(z, generator)`` is fitted by that loss of draws from q(z) instead. A prior without
    parameters, such as the aggregate posterior, needs no fit.

    Args:
        prior: the module that returns p(z) when called, in place.
        q: encodings of the training images, batch shape [N].
        seed: seed of the run.
        stepped: called after every step.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> from pyrovae.models.priors import Diagonal
        >>> prior = Diagonal(latent_size=1)
        >>> q = Independent(Normal(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1)), 1)
        >>> fit_prior(prior, q, seed=0)
        >>> bool((prior().stddev - 2**0.5).abs() < 0.1)
        True
    """
    parameters = list(prior.parameters())
    if not parameters:
        return
    draws = generator(seed, "swap")
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    q = mapped(q, Tensor.detach)
    if hasattr(prior, "start_at"):
        prior.start_at(_draw(q, draws))
    for _ in range(STEPS):
        z = _draw(q, draws)
        loss = prior.fit_loss(z, draws) if hasattr(prior, "fit_loss") else -prior().log_prob(z).mean()
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
