"""A study on vectors: what needs no image works, and pairs of dimensions are drawn instead of pictures."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import InMemory
from matplotlib.figure import Figure

from pyrovae import Results, Run, Study, make_data, run
from pyrovae.analysis import figures
from pyrovae.analysis.inference_data import inference_data
from pyrovae.data import Dataset
from pyrovae.measures.pictures import as_bytes, white_level
from pyrovae.runner.reporting import draw

SETTINGS: dict[str, Any] = {
    "data": "linear",
    "likelihood": "gaussian",
    "train_images": 64,
    "test_images": 64,
    "batch_size": 16,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    study = Study.load(
        "linear",
        **SETTINGS,
        guide="mean_field",
        seed=0,
        network={"name": "mlp", "depth": 1, "width": 8},
        latent_size=2,
        steps=20,
        checkpoint_every=10,
        beta=[1.0],
        measure={"images": 64, "outer": 32, "likelihood_images": 4},
    )
    return run(study, out=tmp_path_factory.mktemp("vectors") / "study", quiet=True)


@pytest.mark.usefixtures("all_figures")
def test_study_on_vectors_has_numbers_and_a_report(results: Results) -> None:
    for group in ("rate_distortion", "information", "likelihood", "memorisation", "difficulty"):
        data = results.tree[group].to_dataset()
        assert any(np.isfinite(data[name]).all() for name in data), group
    assert not results.pictures("samples")
    draw(results)
    drawn = {path.stem for path in (results.folder / "figures").glob("*.png")}
    assert {"pair_plot", "rate_distortion", "latent_plane"} <= drawn
    assert not {"samples", "reconstructions", "traversals"} & drawn
    assert "Test vectors and draws" in (results.folder / "report.html").read_text(encoding="utf-8")


def test_pair_plot_shows_test_vectors_above_and_draws_below(results: Results) -> None:
    ax = Figure().subplots()
    vectors = results.pictures("vectors", beta=1.0)
    figures.pair_plot(InMemory(results.tree, pictures={"vectors": vectors.expand_dims("beta")}), ax)
    panels = np.array(ax.figure.axes[1:]).reshape(4, 4)
    cell = {name: vectors[name].squeeze().values for name in ("data", "generated")}
    np.testing.assert_allclose(panels[0, 2].collections[0].get_offsets(), cell["data"][:, [2, 0]])
    np.testing.assert_allclose(panels[2, 0].collections[0].get_offsets(), cell["generated"][:, [0, 2]])
    test = make_data(Run(**SETTINGS)).test
    np.testing.assert_array_equal(cell["data"], test[:, :4])


def test_inference_data_of_vectors_keeps_their_shape(results: Results) -> None:
    x = make_data(Run(**SETTINGS)).test[:3]
    found = inference_data(results.pair(beta=1.0), x, draws=5, predictive=4)
    assert found["posterior_predictive"]["x"].shape == (1, 4, 3, 6)


def test_pictures_of_counts_are_scaled_to_the_largest() -> None:
    counts = torch.tensor([0.0, 8.0, 16.0])
    for images, expected in ((counts, [0, 128, 255]), (counts / 32, [0, 64, 128])):
        run = SimpleNamespace(data=Dataset(images, counts))
        assert as_bytes(images, white_level(run)).tolist() == expected  # type: ignore[arg-type]
