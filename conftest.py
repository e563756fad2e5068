"""Fixtures, and a guard against tests and code that change global state."""

from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch
from torch.distributions import Distribution


@pytest.fixture(autouse=True)
def _global_state_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that leaves parameters in Pyro's store, or another dtype or validation behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pyro.clear_param_store()
    before = torch.get_default_dtype(), Distribution._validate_args, torch.is_grad_enabled()
    yield
    assert (torch.get_default_dtype(), Distribution._validate_args, torch.is_grad_enabled()) == before


@pytest.fixture(autouse=True)
def _doctest_place(doctest_namespace: dict[str, object], tmp_path: Path) -> None:
    doctest_namespace["tmp_path"] = tmp_path
