"""Likelihoods p(x|z), one file each: a likelihood maps the decoder's features to a distribution."""

from pyrovae.models.likelihoods.bernoulli import Bernoulli
from pyrovae.models.likelihoods.categorical import Categorical
from pyrovae.models.likelihoods.continuous_bernoulli import ContinuousBernoulli
from pyrovae.models.likelihoods.discretised_logistic import DiscretisedLogistic
from pyrovae.models.likelihoods.gaussian import Gaussian, GaussianPerPixel, GaussianShared
from pyrovae.models.likelihoods.negative_binomial import NegativeBinomial
from pyrovae.models.likelihoods.poisson import Poisson

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretisedLogistic",
    "Gaussian",
    "GaussianPerPixel",
    "GaussianShared",
    "NegativeBinomial",
    "Poisson",
]
