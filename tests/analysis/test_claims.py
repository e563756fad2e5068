import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from pyrovae.analysis.findings.caveats import caveats
from pyrovae.analysis.findings.claims import claims
from pyrovae.analysis.report import tables


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
        "prior_gap": np.broadcast_to(np.array([50.0, 20.0])[:, None, None], shape).copy(),
        "prior_gap_se": np.full(shape, 0.1),
    }
    images = {"distortion": (dims, values), "reconstruction_distance": (dims, np.full(values.shape, np.nan))}
    bounds = {name: (dims[2:], np.zeros(shape)) for name in ("log_likelihood", "high_pareto_k")}
    return xr.DataTree.from_dict(
        {
            "/images": xr.Dataset(images, coords),
            "/likelihood": xr.Dataset(bounds, coords_in),
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
    assert all(claim.note == "it has at no β, so there is nothing to compare" for claim in found)
    tree = _tree(5.0)
    tree["/information"]["mutual_information"].loc[{"beta": 1.0, "seed": 1}] = 7.5
    found = [claim for claim in claims(tree) if "log N" in claim.text]
    assert all(claim.note == "it has at β = 0.1 alone, so there is nothing to compare" for claim in found)


def test_central_finding_reverses_where_the_gap_shrinks() -> None:
    tree = _tree(5.0)
    tree["information"]["prior_gap"][:] = tree["information"]["prior_gap"].values[::-1]
    found = [claim for claim in claims(tree) if "log N" in claim.text]
    assert {claim.verdict for claim in found} == {"not supported"}
    tree["information"]["prior_gap"][:] = 20 + np.array([0.0, 1.0, -1.0])[None, :, None]
    assert {claim.verdict for claim in claims(tree) if "log N" in claim.text} == {"undecided"}


def test_central_finding_says_where_information_is_not_measured() -> None:
    tree = _tree(5.0)
    tree["information"]["mutual_information"].loc[{"beta": 0.1, "seed": 0}] = np.nan
    for claim in [claim for claim in claims(tree) if "log N" in claim.text]:
        assert claim.verdict == "undecided"
        assert claim.note == "I is not measured in every run at β = 0.1"


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_infinite_or_missing_distortion_of_some_images_is_no_support(value: float) -> None:
    tree = _tree(5.0)
    tree["images"]["distortion"].loc[{"beta": 0.1, "seed": 1, "image": slice(0, 80)}] = value
    found = claims(tree)
    assert {claim.verdict for claim in found} == {"undecided"}
    assert all("not finite" in claim.note for claim in found)


def test_padding_is_no_missing_image() -> None:
    tree = _tree(5.0)
    tree["images"]["distortion"].loc[{"image": slice(150, None)}] = np.nan
    assert {claim.verdict for claim in claims(tree)} == {"supported"}


def test_diverged_run_counts_for_nothing_and_is_told() -> None:
    tree = _tree(5.0)
    status = xr.full_like(tree["information"]["log_n"], "done", dtype=object)
    status.loc[{"beta": 0.1, "seed": 1, "depth": 3}] = "diverged"
    diverged_at = xr.where(status == "diverged", 1234, -1)
    told = xr.full_like(status, "one site alone")
    tree["runs"] = xr.DataTree(
        xr.Dataset({"status": status, "diverged_at": diverged_at, "skipped": told, "versions": told})
    )
    verdicts = {claim.where: claim.verdict for claim in claims(tree) if claim.text.startswith("Lowering")}
    assert verdicts == {"depth 1": "supported", "depth 3": "undecided"}
    tree["curves"] = xr.DataTree(
        xr.Dataset({"loss": (["split", "step"], [[9.0, 1, 1]])}, {"split": ["train"], "step": [0, 3, 4]})
    )
    line, reason, *_ = caveats(tree)
    assert line.startswith("the run at beta=0.1, seed=1, depth=3 diverged at step 1,234")
    assert reason == "one site alone"


def test_table_shows_the_numbers_of_the_tree() -> None:
    tree = _tree(5.0)
    shape = {"split": 2, "beta": 2, "seed": 3, "depth": 2}
    numbers = np.arange(24.0).reshape(tuple(shape.values()))
    rates = {"rate": (list(shape), 10 + numbers), "rate_se": (list(shape), numbers / 100)}
    tree["rate_distortion"] = xr.DataTree(
        xr.Dataset(rates, {name: tree["images"][name] for name in ("split", "beta", "depth")})
    )
    extra = {"marginal_rate": 60.0, "marginal_rate_se": 0.5, "mutual_information_se": 0.01, "active_units": 7.0}
    for name, value in extra.items():
        tree["information"][name] = xr.full_like(tree["information"]["log_n"], value)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(tables.information(tree))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "│" in line]
    rate = tree["rate_distortion"].to_dataset().mean("seed").sel(depth=3, beta=0.1)
    (train, test), (train_se, test_se) = rate["rate"].values, rate["rate_se"].values
    assert ["3", "0.1", "8.00", f"{train:.1f} ± {train_se:.1f}", "7.99 ± 0.01*", "50.0 ± 0.1"] in [
        row[:6] for row in rows
    ]
    assert [f"{test:.1f} ± {test_se:.1f}", "60.0 ± 0.5", "7.0"] in [row[6:] for row in rows]
