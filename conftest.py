"""Fixtures for all tests and doctests, and a guard against changes of global state."""

import os
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pyro
import pytest
import torch
from torch.distributions import Distribution

from pyrovae.estimators import Optimisation, prior_fit
from pyrovae.measures import generalization_gap
from pyrovae.runner import estimate, speed

# pytest-xdist starts one process per core; each of them, and each command that it starts, uses one thread.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _no_global_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that changes Pyro's param store, the default dtype, validation or the gradient mode."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = _global_state()
    yield
    assert _global_state() == before


def _global_state() -> tuple[object, ...]:
    params = sorted(pyro.get_param_store().keys())
    return torch.get_default_dtype(), Distribution._validate_args, torch.is_grad_enabled(), params


@pytest.fixture(scope="session", autouse=True)
def _quick_studies() -> Iterator[None]:
    """Nothing is drawn, studies are not tried before they train, and later fits take few steps.

    A machine that only trains lacks the packages that draw.
    """
    draws = find_spec("matplotlib") is not None
    with (
        import_module("helpers").nothing_drawn() if draws else mock.patch("pyrovae.runner.reporting.draw"),
        mock.patch.object(estimate, "step_time", return_value=0.01),
        mock.patch.object(estimate, "measuring_time", return_value=0.01),
        mock.patch.object(prior_fit, "STEPS", 300),
        mock.patch.object(generalization_gap, "REFINEMENT", Optimisation(10, samples=4, draws=64)),
    ):
        yield


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries studies before they train, as users do."""
    for name, value in {"step_time": speed.step_time, "measuring_time": speed.measuring_time, "TRIAL": 0.0}.items():
        monkeypatch.setattr(estimate, name, value)


@pytest.fixture
def all_figures() -> Iterator[None]:
    with import_module("helpers").all_figures():
        yield


@pytest.fixture
def one_figure() -> Iterator[None]:
    with import_module("helpers").one_figure():
        yield


@pytest.fixture(autouse=True)
def _doctest_setup(doctest_namespace: dict[str, object], tmp_path: Path) -> None:
    """Gives examples a `tmp_path`."""
    doctest_namespace["tmp_path"] = tmp_path
