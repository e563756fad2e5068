from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from pyrovae.data import Dataset
from pyrovae.measures.encodings import Encodings
from pyrovae.measures.pictures import SAMPLES, traversals

N = 2000
X = torch.zeros(1, 1, 2, 2)


class Logits:
    """A pair whose pixels have the logits z, but for the last, whose logit is 0."""

    def likelihood(self, x: Tensor, z: Tensor, **values: Any) -> Distribution:
        assert len(x) == len(z)
        logits = torch.cat([z, torch.zeros(len(z), 1)], dim=1)
        return Independent(Bernoulli(logits=logits.unflatten(1, (1, 2, 2))), 3)


def normal(loc: Tensor, scale: Tensor) -> Distribution:
    return Independent(Normal(loc, scale), 1)


def traversed(pair: object, train: Distribution, test: Distribution) -> dict[str, Any]:
    encodings = Encodings(train, test, normal(torch.zeros(2), torch.ones(2)))
    run: Any = SimpleNamespace(pair=pair, encodings=encodings, data=Dataset(X, X), seed=0, values={})
    run.once = lambda function: function(run)
    return traversals(run)


def test_traversals_follow_latents_that_differ_most_between_images() -> None:
    spread, noise = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.5, 1.0, 0.1])
    loc = spread * torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
    start = torch.tensor([[0.3, -0.2, 0.6]])
    found = traversed(Logits(), normal(loc, noise.expand(N, 3)), normal(start, torch.full((1, 3), 1e-6)))
    assert found["latent"].tolist() == [2, 0, 1]
    between = spread**2 / (spread**2 + noise**2)
    np.testing.assert_allclose(found["share"], between[[2, 0, 1]], atol=4 / N**0.5)
    images = torch.tensor(found["traversal"] / 255).flatten(2).clamp(0.002, 0.998)
    assert images.shape == (3, SAMPLES, 4)
    for row, latent in enumerate((2, 0, 1)):
        others = [each for each in range(3) if each != latent]
        fixed = torch.sigmoid(start[:, others]).double().expand(SAMPLES, 2)
        torch.testing.assert_close(images[row][:, others], fixed, atol=0.003, rtol=0)
        width = (spread[latent] ** 2 + noise[latent] ** 2) ** 0.5
        ends = torch.sigmoid(
            2.326 * width * torch.tensor([-1.0, 1.0])
        ).double()  # a hundredth of a normal on either side
        torch.testing.assert_close(images[row][[0, -1], latent], ends, atol=0.06, rtol=0)
        assert (images[row][:, latent].diff() >= 0).all()


def test_latents_without_variance_rank_last() -> None:
    loc = torch.stack([torch.zeros(N), torch.linspace(-1, 1, N)], dim=1).double()
    q = normal(loc, torch.full((N, 2), 1e-200, dtype=torch.float64))
    found = traversed(Flat(), q, normal(torch.zeros(1, 2), torch.ones(1, 2)))
    assert found["latent"].tolist() == [1, 0]
    assert np.isfinite(found["share"]).all()


class Flat:
    def likelihood(self, x: Tensor, z: Tensor, **values: Any) -> Distribution:
        return Independent(Bernoulli(logits=torch.zeros(len(z), 1, 2, 2)), 3)
