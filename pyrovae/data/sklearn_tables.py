"""Small real tables that scikit-learn carries, without a download."""

import torch
from torch import Tensor

from pyrovae.data import Source
from pyrovae.errors import InputError


def digits() -> Source:
    """Digits: 1,797 handwritten digits as 8×8 counts from 0 to 16, with 10 classes."""
    counts, labels = _table("load_digits")
    return _source("digits", counts.reshape(-1, 1, 8, 8), labels)


def wine() -> Source:
    """Wine: 178 wines as 13 standardised chemical measurements, with 3 classes."""
    return _source("wine", *_standardised(*_table("load_wine")))


def breast_cancer() -> Source:
    """Breast cancer: 569 tumours as 30 standardised features of cell nuclei, with 2 classes."""
    return _source("breast_cancer", *_standardised(*_table("load_breast_cancer")))


def _table(loader: str) -> tuple[Tensor, Tensor]:
    try:
        from sklearn import datasets
    except ImportError:
        raise InputError(
            "data: expected scikit-learn, which carries this table and is not installed; python -m pip install "
            "'pyrovae[tables]'"
        ) from None
    values, labels = getattr(datasets, loader)(return_X_y=True)
    return torch.from_numpy(values).float(), torch.from_numpy(labels).long()


def _standardised(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return (values - values.mean(0)) / values.std(0), labels


def _source(name: str, values: Tensor, labels: Tensor) -> Source:
    return Source(name, len(values), lambda rows: values[rows], labels=labels)
