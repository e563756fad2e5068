import numpy as np
import pytest
import xarray as xr

from pyrovae.analysis.claims import claims


def _tree(effect: float, noise: float = 1.0, seeds: int = 3) -> xr.DataTree:
    """Distortions that fall by ``effect`` from β = 1 to 0.1, and from one layer to three."""
    rng = np.random.default_rng(0)
    values = 100 + noise * rng.normal(size=(2, 200, 2, seeds, 2))
    values[:, :, 0] -= effect
    values[..., 1] -= effect
    dims = ("split", "image", "beta", "seed", "depth")
    coords = {"split": ["train", "test"], "beta": [0.1, 1.0], "depth": [1, 3]}
    return xr.DataTree.from_dict({"/images": xr.Dataset({"distortion": (dims, values)}, coords)})


@pytest.mark.parametrize(("effect", "verdict"), [(5.0, "supported"), (-5.0, "not supported"), (0.0, "undecided")])
def test_verdict_follows_the_effect(effect: float, verdict: str) -> None:
    found = claims(_tree(effect))
    assert len(found) == 3
    assert {claim.verdict for claim in found} == {verdict}
    assert all(abs(claim.effect - effect) < 1 for claim in found)


def test_one_seed_says_images_only() -> None:
    assert {claim.over for claim in claims(_tree(5.0, seeds=1))} == {"images only"}
