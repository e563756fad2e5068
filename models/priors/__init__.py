"""Priors p(z), one file each: a prior is called without arguments and returns a distribution."""

from pyrovae.models.priors.aggregate import AggregatePosterior
from pyrovae.models.priors.diagonal import Diagonal
from pyrovae.models.priors.exemplar import Exemplar
from pyrovae.models.priors.flow import Flow
from pyrovae.models.priors.flow_matching import FlowMatching
from pyrovae.models.priors.mixture import Mixture
from pyrovae.models.priors.prior import Prior
from pyrovae.models.priors.standard_normal import StandardNormal
from pyrovae.models.priors.student_t import StudentT
from pyrovae.models.priors.vamp import VampPrior

__all__ = [
    "AggregatePosterior",
    "Diagonal",
    "Exemplar",
    "Flow",
    "FlowMatching",
    "Mixture",
    "Prior",
    "StandardNormal",
    "StudentT",
    "VampPrior",
]
