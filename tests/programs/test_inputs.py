"""What a pair or a study is given by mistake gives one line, always as an `InputError`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pyrovae
from pyrovae import InputError, Pair, Run, Study, make_pair
from pyrovae.networks import MLP, Sizes
from pyrovae.training.lockstep import Lockstep

X = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
SMALL: dict[str, Any] = {"width": 4, "latent_size": 2}


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(Run(**SMALL), X.shape[1:])


USES: dict[str, Callable[[Pair, Any], object]] = {
    "forward": lambda pair, x: pair(x),
    "encode": lambda pair, x: pair.encode(x),
    "reconstruct": lambda pair, x: pair.reconstruct(x),
    "terms": lambda pair, x: pair.terms(x),
    "log_likelihood": lambda pair, x: pair.log_likelihood(x, particles=2),
    "to_inference_data": lambda pair, x: pair.to_inference_data(x, draws=2),
}
MISTAKES: dict[str, tuple[Any, str]] = {
    "times 255": (255 * X, r"expected values in \[0, 1\], .* 255 or give them as uint8, or .* gaussian_shared"),
    "from −1 to 1": (2 * X - 1, r"take \(x \+ 1\) / 2 if they are from −1 to 1"),
    "one rounded value": (X.clamp(max=0.5).index_fill(0, torch.tensor([0]), 1.0000001), r"to 1\.00000012; .*rounding"),
    "rounding": (X.clamp(min=0.5) / X.clamp(min=0.5).amax() * 1.0001, r"looks like rounding"),
    "far outside": (X - 500, "scale them, or take a likelihood of real numbers"),
    "channels last": (X.movedim(1, -1), r"got \[6, 4, 4, 3\]: channels last; take x.movedim\(-1, 1\)"),
    "one image": (X[0], r"got \[3, 4, 4\]: one image without its batch dimension; take x\[None\]"),
    "another size": (X[..., :3], r"expected \[batch, 3, 4, 4\], got \[6, 3, 4, 3\]$"),
    "float64": (X.double(), r"expected float32 or uint8, got float64; take x.float\(\)$"),
    "integers": ((255 * X).long(), "got int64; .* integers are pixels only as uint8"),
    "NaN": (X.where(X.max() > X, torch.nan), "got NaN or ∞ in 1 images"),
    "another device": (X.to("meta"), "expected images on cpu, as the pair is, got meta"),
    "a list": (X.tolist(), "expected a tensor or an array of numbers, got list"),
    "an array of text": (X.numpy().astype(str), "expected a tensor or an array of numbers, got ndarray"),
    "no images": (X[:0], "expected at least one image, got none"),
    "integers in an array": ((255 * X).long().numpy(), "got int64; .* integers are pixels only as uint8"),
}


@pytest.mark.parametrize("use", USES)
def test_proper_images_and_bytes_are_taken(use: str, pair: Pair) -> None:
    flipped, swapped = X.numpy()[:, :, ::-1], X.numpy().astype(">f4")
    for x in (X, (255 * X).byte(), X.double().numpy(), (255 * X).byte().numpy(), flipped, swapped):
        assert USES[use](pair, x) is not None


@pytest.mark.parametrize("number", [0, 2.5, True])
@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("n", lambda pair, number: pair.generate(number)),
        ("samples", lambda pair, number: pair.terms(X, samples=number)),
        ("particles", lambda pair, number: pair.log_likelihood(X, particles=number)),
        ("draws", lambda pair, number: pair.to_inference_data(X, draws=number)),
    ],
)
def test_number_of_draws_is_a_positive_integer(
    name: str, use: Callable[[Pair, Any], object], number: Any, pair: Pair
) -> None:
    with pytest.raises(InputError, match=f"{name}: expected an integer of at least 1, got {number}"):
        use(pair, number)


def test_bytes_mean_pixels_in_the_unit_interval(pair: Pair) -> None:
    bytes_ = (255 * X).byte()
    torch.testing.assert_close(pair.encode(bytes_).mean, pair.encode(bytes_ / 255).mean)


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("use", USES)
def test_wrong_images_give_one_line(use: str, mistake: str, pair: Pair) -> None:
    x, expected = MISTAKES[mistake]
    with pytest.raises(InputError, match=expected) as caught:
        USES[use](pair, x)
    assert "\n" not in str(caught.value)


def test_real_numbers_are_taken_where_the_likelihood_takes_them() -> None:
    gaussian = make_pair(Run(likelihood="gaussian", **SMALL), X.shape[1:])
    assert gaussian.terms(255 * X - 100).loss.isfinite().all()


def test_grey_images_without_a_channel_are_recognised() -> None:
    grey = make_pair(Run(**SMALL), torch.Size([1, 4, 4]))
    with pytest.raises(InputError, match=r"grey images without their channel; take x\[:, None\]"):
        grey(X[:, 0])


def test_engine_checks_no_images(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks read values of tensors, which a compiled step could not do."""
    monkeypatch.setattr("pyrovae.programs.pair.checked", None)
    runs = Lockstep([pair, pair], {"beta": torch.ones(2), "gamma": torch.ones(2)})
    assert runs.terms(X, {"z": torch.randn(2, 6, 2)}, []).loss.shape == (2, 6)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("prior", ["standard_normal", "mixture", "vamp", "aggregate"])
def test_default_of_float64_changes_nothing(prior: str, tmp_path: Path) -> None:
    settings = {"prior": prior} | ({"components": 2} if prior in ("mixture", "vamp") else {})
    pair = pyrovae.fit(X, steps=2, quiet=True, **settings, **SMALL)
    pair.save(tmp_path / "mine.safetensors")
    again = pyrovae.load(tmp_path / "mine.safetensors")
    assert {tensor.dtype for tensor in again.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    for each in (pair, again):
        assert each.terms(X).loss.dtype == each.generate(2).dtype == torch.float32


@pytest.mark.usefixtures("double")
def test_weights_of_a_study_are_read_under_a_default_of_float64(tmp_path: Path) -> None:
    measure = {"images": 4, "outer": 2, "likelihood_images": 2, "particles": 4, "reconstructions": 2, "probe": 2}
    study = Study(X, test=X / 2, steps=1, batch_size=4, measure=measure, **SMALL)
    assert study.run(tmp_path / "mine", quiet=True).pair().generate(1).dtype == torch.float32


class Biased(MLP):
    """A decoder whose bias has another size than the features."""

    output_bias = nn.Parameter(torch.zeros(2))  # type: ignore[assignment]


def biased(sizes: Sizes) -> tuple[nn.Module, nn.Module]:
    return MLP(sizes.image, (), sizes.encoder), Biased((sizes.latent,), (), sizes.decoder)


def test_bias_that_cannot_start_at_the_mean_gives_one_line() -> None:
    run, mean = Run(network=f"{__name__}:biased", latent_size=2), X.mean(0)
    with pytest.raises(InputError, match=r"an output_bias that could start at the mean .* \[48\] .*, got \[2\]"):
        make_pair(run, X.shape[1:], mean)
    with pytest.raises(InputError, match="could start at the mean"):
        make_pair(Run(**SMALL), X.shape[1:], torch.full_like(mean, torch.nan))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Run(prior="vampp"), "unknown prior 'vampp'; valid: aggregate"),
        (lambda: make_pair(Run(degrees=3), (1, 4, 4)), "unknown setting 'degrees'"),
        (lambda: Study(prior=["vamp", "vampp"]), "unknown prior 'vampp'"),
        (lambda: Study(beta="much"), "beta: "),
        (lambda: Study(beta=[]), "beta: expected at least one value"),
        (lambda: Study(measure=3), "measure: expected settings"),
        (lambda: Study("nowhere"), "unknown data 'nowhere'"),
        (lambda: Study(3), "expected images"),
        (lambda: Study(object()), "expected numbers"),
        (lambda: Study(name="a/b"), "name: "),
        (lambda: Study(base=3), "base: "),
        (lambda: Study(X, betas=[0.1, 1]), "unknown setting 'betas'.* did you mean 'beta'"),
        (lambda: Study(X, test="nowhere"), "nowhere: expected a folder of images"),
        (lambda: Study(test=X), "data: expected training images with the test images, got none"),
    ],
)
def test_wrong_settings_give_one_line(make: Callable[[], object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make()


def test_every_error_of_a_user_is_one_kind() -> None:
    from pyrovae import errors

    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    assert all(issubclass(each, InputError) for each in kinds)
    assert issubclass(InputError, ValueError)


def test_codes_of_another_size_give_one_line(pair: Pair) -> None:
    z: Tensor = torch.zeros(5, 3)
    with pytest.raises(InputError, match=r"z: expected \[n, 2\], got \[5, 3\]"):
        pair.decode(z)


def test_codes_are_a_tensor_or_an_array(pair: Pair) -> None:
    z = np.random.default_rng(0).normal(size=(5, 2))
    torch.testing.assert_close(pair.decode(z).mean, pair.decode(torch.from_numpy(z).float()).mean)  # type: ignore[arg-type]
