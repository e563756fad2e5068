"""The infinite-capacity decoder, which is optimal on the training images and memorises them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.data import as_input
from pyrovae.estimators.marginal import encodings, log_densities, log_total

#: Logarithm up to which weights count as zero: near −708, where exp begins to underflow, it is slow.
SMALLEST = -700.0
#: log₁₀ of the smallest mixing share.
MIN_LOG10_SHARE = -12.0


class Memorised(NamedTuple):
    """Reconstructions by the infinite-capacity decoder.

    Attributes:
        image: x̂(z), ``[n, *event_shape]``, in float64.
        perplexity: exp of the entropy of the weights, ``[n]``: the effective number of training images in x̂(z).
    """

    image: Tensor
    perplexity: Tensor


@torch.no_grad()
def memorising_decoder(z: Tensor, q: Distribution, images: Tensor, own: Tensor | None = None) -> Memorised:
    """The infinite-capacity decoder, x̂(z) = Σ_n w_n(z) x_n with w_n(z) = q(z|x_n) / Σ_m q(z|x_m).

    x̂(z) is the posterior mean of the training image given z. Where the distortion depends on the mean alone, as under
    a Bernoulli likelihood or a Gaussian one with fixed σ, no decoder has a lower training distortion with this guide.
    A trained decoder that does better on unseen images does so because of its limited capacity.

    Args:
        z: codes, ``[n, *latent_shape]``.
        q: encodings of the training images, batch shape [N].
        images: the training images, ``[N, *event_shape]``; uint8 is scaled to [0, 1].
        own: row of each code's own training image, ``[n]``, to exclude; −1 for none.

    Raises:
        UnsupportedError: ``q`` is neither normal nor a flow.
        InputError: the batch shape of ``q`` is not [N].

    Source: Rezende & Viola 2018, Taming VAEs (the optimal decoder); Bozkurt et al. 2021.

    Cost: n · N densities and n · N products with images, in chunks and in float64, as weights may be as small as e⁻⁷⁰⁰.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> q = Independent(Normal(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1)), 1)
        >>> decoded = memorising_decoder(torch.tensor([[0.0], [9.0]]), q, torch.tensor([[0.0], [1.0]]))
        >>> decoded.image.round(decimals=3).flatten().tolist(), decoded.perplexity.round(decimals=3).tolist()
        ([0.5, 1.0], [2.0, 1.0])
    """
    q, z = encodings(q), z.double()
    total = log_total(z, q, own)
    x_hat, entropy = z.new_zeros(len(z), images[0].numel()), torch.zeros_like(total)
    for codes, parts in log_densities(z, q, own):
        for part, log_q in parts:
            log_w = log_q.sub_(total[codes, None]).clamp_(min=SMALLEST)
            w = log_w.exp().masked_fill_(log_w == SMALLEST, 0.0)
            entropy[codes] -= log_w.mul_(w).sum(1)
            used = w.sum(0).nonzero().squeeze(1)  # where codes are far apart, most weights are zero
            x = as_input(images[part].index_select(0, used))
            x_hat[codes] += w.index_select(1, used) @ x.double().flatten(1)
    return Memorised(x_hat.unflatten(1, images.shape[1:]), entropy.exp())


@torch.no_grad()
def mixing_share(distortion: Callable[[Tensor], Tensor], image: Tensor, mean: Tensor) -> float:
    """The mixing share ε in [10⁻¹², 1] that minimises the mean distortion of (1 − ε) x̂ + ε x̄.

    Under x̂ alone, one lit pixel that is dark in all weighted training images makes the Bernoulli distortion infinite.
    Fit ε to training images, and exclude each from its own x̂; otherwise the minimum is at ε = 0.

    Args:
        distortion: mean images → distortion of the images, ``[n, *event_shape] → [n]``; convex.
        image: x̂ of these images, ``[n, *event_shape]``.
        mean: x̄, a mean image in which no pixel is exactly 0 or 1, ``[*event_shape]``.

    Example:
        >>> import torch
        >>> x, x_hat = torch.tensor([[1.0], [1.0], [1.0], [0.0]]).double(), torch.ones(4, 1).double()
        >>> def distortion(mean: torch.Tensor) -> torch.Tensor:
        ...     return -(x * mean.log() + (1 - x) * (1 - mean).log()).sum(1)
        >>> round(mixing_share(distortion, x_hat, torch.full((1,), 0.5)), 2)  # a quarter of the pixels are dark
        0.5
    """
    optimum = minimize_scalar(
        lambda power: float(distortion(torch.lerp(image, mean.to(image), 10.0**power)).mean()),
        bounds=(MIN_LOG10_SHARE, 0.0),
        method="bounded",
        options={"xatol": 0.01},
    )
    return 10.0 ** float(optimum.x)
