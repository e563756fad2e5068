"""Estimators: functions of distributions and tensors that return a value in nats, its standard error, and its kind."""

from pyrovae.estimators.annealing import (
    Annealed,
    Annealing,
    DecoderCurve,
    Sandwich,
    annealed_log_likelihood,
    bidirectional_log_likelihood,
)
from pyrovae.estimators.estimate import Estimate, Kind, mean_over_images
from pyrovae.estimators.generalization import GeneralizationGap, generalization_gap
from pyrovae.estimators.inference_gap import InferenceGap, Optimisation, amortised_distortion, inference_gap
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
from pyrovae.estimators.likelihood import ImportanceWeighted, log_likelihood
from pyrovae.estimators.linear_gaussian import LinearGaussian
from pyrovae.estimators.memorisation import Memorised, memorising_decoder, mixing_share
from pyrovae.estimators.nearest import Nearest, nearest_point
from pyrovae.estimators.population import PopulationBracket, population_bracket
from pyrovae.estimators.psis import Diagnostics, importance_diagnostics, pareto_k_threshold

__all__ = [
    "Annealed",
    "Annealing",
    "DecoderCurve",
    "Diagnostics",
    "Estimate",
    "GeneralizationGap",
    "ImportanceWeighted",
    "InferenceGap",
    "Kind",
    "LinearGaussian",
    "Memorised",
    "Nearest",
    "Optimisation",
    "PopulationBracket",
    "RateTerms",
    "Sandwich",
    "active_units",
    "amortised_distortion",
    "annealed_log_likelihood",
    "bidirectional_log_likelihood",
    "generalization_gap",
    "importance_diagnostics",
    "inference_gap",
    "log_likelihood",
    "marginal_rate",
    "mean_over_images",
    "memorising_decoder",
    "mixing_share",
    "mutual_information",
    "nearest_point",
    "pareto_k_threshold",
    "population_bracket",
    "prior_gap",
    "rate",
    "rate_per_dimension",
    "rate_terms",
]
