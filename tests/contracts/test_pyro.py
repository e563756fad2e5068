"""Every prior works with what `analysis/docs/howto-pair.md` names of Pyro."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import infer
from pyro.infer.autoguide import AutoNormal

from pyrovae import Pair, Run, make_pair, parts

IMAGES = torch.randint(0, 2, (6, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)) * 255
X = IMAGES / 255
PAGE = Path(__file__).parents[2] / "analysis/docs/howto-pair.md"


@pytest.fixture(autouse=True)
def _empty_store() -> Iterator[None]:
    yield
    pyro.clear_param_store()


def loss(pair: Pair, name: str) -> float:
    """The loss of some particles, always from the same draws."""
    elbo = getattr(infer, name)(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found: float = elbo.loss_and_grads(pair.model, pair.guide, X)
    assert all(parameter.grad is not None for parameter in pair.guide.parameters())
    return found


def trace(pair: Pair) -> None:
    assert math.isfinite(loss(pair, "Trace_ELBO"))


def mean_field(pair: Pair) -> None:
    elbo = infer.TraceMeanField_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    assert math.isfinite(elbo.loss(pair.model, pair.guide, X))


def graph(pair: Pair) -> None:
    assert loss(pair, "TraceGraph_ELBO") == pytest.approx(loss(pair, "Trace_ELBO"), rel=1e-5)


def renyi(pair: Pair) -> None:
    assert loss(pair, "RenyiELBO") < loss(pair, "Trace_ELBO")


def predictive(pair: Pair) -> None:
    for parallel in (False, True):
        draws = infer.Predictive(pair.model, num_samples=3, parallel=parallel)(n=2)
        assert draws["x"].shape[-5:] == (3, 2, 1, 4, 4)


def autoguide(pair: Pair) -> None:
    assert math.isfinite(infer.Trace_ELBO().loss(pair.program(), AutoNormal(pair.program()), X))


def nuts(pair: Pair) -> None:
    kernel = infer.NUTS(pair.program(), max_tree_depth=2)
    chain = infer.MCMC(kernel, num_samples=2, warmup_steps=2, disable_progbar=True)
    chain.run(X)
    assert chain.get_samples()["z"].isfinite().all()


def render(pair: Pair) -> None:
    assert "z -> x" in pyro.render_model(pair.model, (X,)).source


USES: dict[str, Callable[[Pair], Any]] = {
    "Trace_ELBO": trace,
    "TraceMeanField_ELBO": mean_field,
    "TraceGraph_ELBO": graph,
    "RenyiELBO": renyi,
    "Predictive": predictive,
    "AutoNormal": autoguide,
    "NUTS": nuts,
    "render_model": render,
}


def test_page_names_what_is_tested() -> None:
    _, section = PAGE.read_text(encoding="utf-8").split("## Priors and Pyro's inference tools\n")
    assert re.findall(r"`(\w+)`", section.strip().split("\n\n")[0]) == list(USES)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("prior", parts.SHIPPED["prior"])
def test_every_prior_works_with_what_the_page_names(prior: str, use: str) -> None:
    run = Run(prior=prior, depth=1, width=4, latent_size=2, batch_size=4)
    pair = make_pair(run, X.shape[1:], X.mean(0))
    pair.refresh(IMAGES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        USES[use](pair)
