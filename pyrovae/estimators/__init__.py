"""Estimators: pure functions of distributions and tensors, in nats, each with its error and its kind."""

from pyrovae.estimators.estimate import Estimate, Kind
from pyrovae.estimators.information import (
    RateTerms,
    active_units,
    marginal_rate,
    mutual_information,
    prior_gap,
    rate,
    rate_per_dimension,
    rate_terms,
)
from pyrovae.estimators.likelihood import log_likelihood
from pyrovae.estimators.linear_gaussian import LinearGaussian
from pyrovae.estimators.nearest import nearest_distance

__all__ = [
    "Estimate",
    "Kind",
    "LinearGaussian",
    "RateTerms",
    "active_units",
    "log_likelihood",
    "marginal_rate",
    "mutual_information",
    "nearest_distance",
    "prior_gap",
    "rate",
    "rate_per_dimension",
    "rate_terms",
]
