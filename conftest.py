"""Fixtures for all tests and doctests, and a guard against changes of global state."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch
from torch.distributions import Distribution

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


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws one figure per study: drawing all of them takes longer than training in most tests.

    It draws none without the packages that draw, as on a machine that only trains.
    """
    try:
        from pyrovae.analysis import figures
    except ModuleNotFoundError:
        monkeypatch.setattr("pyrovae.runner.reporting.draw", lambda results: None)
        return
    monkeypatch.setattr(figures, "FIGURES", {"rate_distortion": figures.rate_distortion})


@pytest.fixture(autouse=True)
def _doctest_setup(request: pytest.FixtureRequest, doctest_namespace: dict[str, object], tmp_path: Path) -> None:
    """Gives examples a `tmp_path`, and draws few figures in them."""
    doctest_namespace["tmp_path"] = tmp_path
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("few_figures")
