"""The contract of networks: every network in `pyrovae.parts` is tested here and needs no further test."""

from typing import Any

import pytest
import torch

from pyrovae import InputError, Run, build, make_pair, parts
from pyrovae.networks import Sizes

NETWORKS = list(parts.names("network"))
IMAGES = [torch.Size([1, 28, 28]), torch.Size([3, 28, 28]), torch.Size([1, 32, 32]), torch.Size([3, 32, 32])]


def run_with(network: str, seed: int = 0) -> Run:
    small = {"depth": 2, "width": 16}
    taken = small.keys() & parts.settings_of("network", network).keys()
    return Run(network=network, latent_size=3, seed=seed, **{key: small[key] for key in taken})


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_network_broadcasts_over_leading_dimensions(name: str, image: torch.Size) -> None:
    sizes = Sizes(image, latent=3, encoder=7, decoder=2 * image.numel())
    encoder, decoder = build.instantiate("network", run_with(name), sizes)
    x, z = torch.rand(2, 5, *image), torch.randn(2, 5, 3)
    with torch.no_grad():
        for network, inputs, features in ((encoder, x, 7), (decoder, z, sizes.decoder)):
            outputs = network(inputs)
            assert outputs.shape == (2, 5, features)
            torch.testing.assert_close(outputs[1, 3], network(inputs[1, 3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_decoder_starts_at_the_mean_image(name: str) -> None:
    mean = torch.linspace(0.01, 0.99, IMAGES[0].numel()).reshape(IMAGES[0])
    before, after = make_pair(run_with(name), IMAGES[0]), make_pair(run_with(name), IMAGES[0], mean)
    z = torch.zeros(1, 3)
    with torch.no_grad():
        moved = after.model.decoder(z) - before.model.decoder(z)
        start = after.model.likelihood.initial_features(mean) - before.model.decoder.output_bias
    torch.testing.assert_close(moved[0], start, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_network_has_the_same_gradients_in_lockstep(name: str, assert_trains_in_lockstep: Any) -> None:
    pairs = [make_pair(run_with(name, seed), IMAGES[0]) for seed in (0, 1)]
    assert_trains_in_lockstep(pairs, IMAGES[0])


def test_capacity_of_convolutions_is_ordered_by_name() -> None:
    sizes = [
        sum(parameter.numel() for parameter in make_pair(run_with(f"conv_{size}"), IMAGES[0]).parameters())
        for size in ("small", "medium", "large")
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] * 2 < sizes[1]
    assert sizes[1] * 2 < sizes[2]


def test_convolutions_need_sides_divisible_by_four() -> None:
    with pytest.raises(InputError, match="network: convolutions expect images with sides divisible by 4"):
        make_pair(run_with("conv_small"), torch.Size([1, 30, 30]))
