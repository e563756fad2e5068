"""A study: the settings of its runs, the grid that they make up, study files, and the studies that ship."""

from pyrovae.study.components import check_settings, component_settings, parameters_of, takes_gamma
from pyrovae.study.files import parse_yaml
from pyrovae.study.grid import (
    DATA_SETTINGS,
    DIMENSIONS,
    EVERY_SPLIT,
    PER_RUN,
    SPLITS,
    Cohort,
    Study,
    check_trust,
    shipped,
)
from pyrovae.study.keys import cohort_key, identity, key_of
from pyrovae.study.settings import KINDS, Measure, Precision, Run

__all__ = [
    "DATA_SETTINGS",
    "DIMENSIONS",
    "EVERY_SPLIT",
    "KINDS",
    "PER_RUN",
    "SPLITS",
    "Cohort",
    "Measure",
    "Precision",
    "Run",
    "Study",
    "check_settings",
    "check_trust",
    "cohort_key",
    "component_settings",
    "identity",
    "key_of",
    "parameters_of",
    "parse_yaml",
    "shipped",
    "takes_gamma",
]
