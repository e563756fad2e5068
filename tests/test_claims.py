import numpy as np
import pytest
import xarray as xr

from pyrovae.analysis.claims import claims


def _tree(effect: float, noise: float = 1.0, seeds: int = 3, saturated: bool = True) -> xr.DataTree:
    """Distortions that fall by ``effect`` from β = 1 to 0.1, and from one layer to three; G is larger by 30 nats."""
    rng = np.random.default_rng(0)
    values = 100 + noise * rng.normal(size=(2, 200, 2, seeds, 2))
    values[:, :, 0] -= effect
    values[..., 1] -= effect
    dims = ("split", "image", "beta", "seed", "depth")
    coords_in = {"beta": [0.1, 1.0], "depth": [1, 3]}
    coords = {"split": ["train", "test"], **coords_in}
    shape = (2, seeds, 2)
    information = {
        "mutual_information": np.full(shape, 7.99) if saturated else np.full(shape, 5.0),
        "log_n": np.full(shape, 8.0),
        "prior_gap": np.broadcast_to(np.array([50.0, 20.0])[:, None, None], shape),
        "prior_gap_se": np.full(shape, 0.1),
    }
    return xr.DataTree.from_dict(
        {
            "/images": xr.Dataset({"distortion": (dims, values)}, coords),
            "/information": xr.Dataset({name: (dims[2:], value) for name, value in information.items()}, coords_in),
        }
    )


@pytest.mark.parametrize(("effect", "verdict"), [(5.0, "supported"), (-5.0, "not supported"), (0.0, "undecided")])
def test_verdict_follows_the_effect(effect: float, verdict: str) -> None:
    found = claims(_tree(effect))
    assert len(found) == 5  # β and saturation at either depth, and depth
    assert {claim.verdict for claim in found} == {verdict}
    assert all(abs(claim.effect - effect) < 1 for claim in found)


def test_one_seed_says_images_only() -> None:
    assert {claim.over for claim in claims(_tree(5.0, seeds=1))} == {"images only"}


def test_central_finding_tells_where_information_is_full_and_how_the_gap_grows() -> None:
    texts = [claim.text for claim in claims(_tree(5.0)) if "log N" in claim.text]
    assert len(texts) == 2
    assert all(text.startswith("I reaches log N at β ≤ 1; from there to β = 0.1") for text in texts)
    assert all(text.endswith("while G grows by 30.0 ± 0.3 nats") for text in texts)  # 1.96 √2 · 0.1


def test_central_finding_is_undecided_where_information_is_not_full() -> None:
    found = [claim for claim in claims(_tree(5.0, saturated=False)) if "log N" in claim.text]
    assert {claim.verdict for claim in found} == {"undecided"}
    assert all("it has at no β" in claim.text for claim in found)
    tree = _tree(5.0)
    tree["/information"]["mutual_information"].loc[{"beta": 1.0, "seed": 1}] = 7.5
    assert all("it has at β = 0.1 alone" in claim.text for claim in claims(tree) if "log N" in claim.text)
