"""Fixtures, and a guard against tests and code that change global state."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch
from torch.distributions import Distribution

# Tests run on all cores, each on one, and so do the commands that they start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _global_state_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that leaves parameters in Pyro's store, or another dtype or validation behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = _global_state()
    yield
    assert _global_state() == before


def _global_state() -> tuple[object, ...]:
    params = sorted(pyro.get_param_store().keys())
    return torch.get_default_dtype(), Distribution._validate_args, torch.is_grad_enabled(), params


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """One figure a study, where a test is not about figures: to draw all takes longer than what is run."""
    from pyrovae.analysis import figures

    monkeypatch.setattr(figures, "FIGURES", {"rate_distortion": figures.rate_distortion})


@pytest.fixture(autouse=True)
def _doctest_place(request: pytest.FixtureRequest, doctest_namespace: dict[str, object], tmp_path: Path) -> None:
    """A folder for examples that need one, which draw few figures."""
    doctest_namespace["tmp_path"] = tmp_path
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("few_figures")
