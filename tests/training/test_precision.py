"""Training of networks below float32: what is rounded, what is not, and the effect on results."""

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pyrovae import InputError, Pair, Run, Study, make_pair, run
from pyrovae.study import Precision
from pyrovae.training.adam import Adam, step_sizes
from pyrovae.training.lockstep import Batch, Lockstep
from pyrovae.training.precision import autocast_layers, matmul_precision

EVENT = torch.Size([3, 8, 8])
MLP = "mlp(depth=2, width=32)"
STUDY = Study(
    name="precise", beta=[0.1, 1], seed=0, depth=1, width=32, latent_size=3, train_images=256, test_images=128,
    steps=200, batch_size=32, precision=["float32", "bfloat16"],
    measure={"images": 128, "outer": 128, "particles": 4, "reconstructions": 4, "probe": 16, "points": 3},
)  # fmt: skip


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(params=[(True, False), (False, True)])
def before(request: pytest.FixtureRequest) -> Iterator[tuple[bool, bool]]:
    """Flags that were set before."""
    usual = flags()
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = request.param
    yield request.param
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = usual


@matmul_precision("tf32")
def rounded_then_not() -> list[tuple[bool, bool]]:
    seen = [flags()]
    with matmul_precision("float32"):
        seen.append(flags())
    return [*seen, flags()]


@matmul_precision("tf32")
def broken() -> None:
    raise KeyError


def test_tf32_is_set_in_the_block_and_restored_afterwards(before: tuple[bool, bool]) -> None:
    assert rounded_then_not() == [(True, True), (False, False), (True, True)]
    assert flags() == before
    with pytest.raises(KeyError):
        broken()
    assert flags() == before


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(16, 4), nn.Conv1d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(2, 4, 3), nn.Conv3d(2, 4, 3)],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_round_their_inputs_and_outputs(layer: nn.Module) -> None:
    x = torch.randn(5, *((16,) if isinstance(layer, nn.Linear) else (2, *(7,) * (layer.weight.dim() - 2))))
    with autocast_layers("bfloat16"):
        rounded = layer(x)
    exact = layer(x)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, rounded.bfloat16().float())
    error = (rounded - exact).abs().max() / exact.abs().max()
    assert 0 < error < 2**-5
    with autocast_layers("float32"), autocast_layers("tf32"):
        assert torch.equal(layer(x), exact)


def test_matrix_products_outside_layers_are_not_rounded() -> None:
    """With rounding, the draws of a full-rank guide would not follow its density."""
    x, y = torch.randn(3, 4, 5), torch.randn(3, 5, 6)
    exact = x @ y
    with autocast_layers("bfloat16"):
        assert torch.equal(x @ y, exact)
        assert torch.equal(torch.einsum("bij,bjk->bik", x, y), torch.einsum("bij,bjk->bik", x, y))
        assert not torch.equal(functional.linear(x[0], y[0].T), exact[0])


@pytest.mark.parametrize(
    ("network", "guide"),
    [(MLP, "full_rank"), pytest.param(MLP, "flow", marks=pytest.mark.long), ("conv_small", "mean_field")],
)
def test_bfloat16_steps_equal_float32_steps_up_to_rounding(network: str, guide: str) -> None:
    """Vmapped and sequentially; weights, moments and losses stay float32."""
    run = Run(network=network, guide=guide, latent_size=3)
    found = {}
    for precision, mode in (("float32", "vmapped"), ("bfloat16", "vmapped"), ("bfloat16", "sequential")):
        pairs = [make_pair(run.model_copy(update={"seed": seed}), EVENT) for seed in (0, 1)]
        lockstep = Lockstep(pairs, {"beta": torch.tensor([0.5, 1.0])}, precision)  # type: ignore[arg-type]
        draws = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (64, *EVENT), dtype=torch.uint8, generator=draws)
        rows, noise = torch.arange(64).expand(2, 64), {"z": torch.randn(2, 64, 3, generator=draws)}
        adam = Adam.of(lockstep.params)
        batch = Batch(images, rows, rows, lockstep.values, noise, step_sizes([0.0], 1), keys=[0, 1])
        losses = lockstep.stepper(mode, adam, batch)(batch)  # type: ignore[arg-type]
        assert {each.dtype for each in (losses, *lockstep.params.values(), *adam.exp_avg.values())} == {torch.float32}
        found[precision, mode] = torch.cat([losses, *(each.flatten() for each in adam.exp_avg.values())])
    exact, vmapped, sequential = found.values()
    for other, least, most in ((exact, 1e-5, 0.05), (sequential, 0, 0.02)):
        assert least <= (vmapped - other).norm() / other.norm() < most
    assert ((vmapped - exact)[:2].abs() / exact[:2]).max() < 2**-8  # losses, of which each is a sum of many terms


@pytest.mark.parametrize("has_instructions", [False, True])
def test_slow_bfloat16_is_one_line(
    has_instructions: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    run(STUDY.replace(steps=2), tmp_path / "study", device="cpu", compile="never")
    slow = "this CPU has no instructions for bfloat16, so it trains more slowly than in float32"
    assert capsys.readouterr().out.count(slow) == int(not has_instructions)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_measures_are_not_rounded(
    precision: Precision, before: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    forward = Pair.forward

    def watched(self: Pair, *arguments: Any, **values: Any) -> Any:
        seen.append(flags())
        return forward(self, *arguments, **values)

    monkeypatch.setattr(Pair, "forward", watched)
    x, noise = torch.rand(8, *EVENT), {"z": torch.randn(1, 8, 3)}
    found = {}
    both: tuple[Precision, ...] = ("float32", precision)
    for each in both:
        lockstep = Lockstep([make_pair(Run(width=8, latent_size=3), EVENT)], {"beta": torch.ones(1)}, each)
        found[each] = lockstep.terms(x, noise, [0])
        rows = torch.arange(8)[None]
        batch = Batch(x, rows, rows, lockstep.values, noise, step_sizes([0.0], 1), keys=[0])
        lockstep.stepper("sequential", Adam.of(lockstep.params), batch)(batch)
    assert torch.equal(found[precision].loss, found["float32"].loss)
    assert seen == [(False, False)] * 3 + [(precision == "tf32",) * 2]
    assert flags() == before


@pytest.mark.long
def test_precision_can_be_an_axis(tmp_path: Path) -> None:
    """Results of different precisions differ, but within their errors."""
    results = run(STUDY, tmp_path / "study", quiet=True, compile="never")
    for group, names in (
        ("rate_distortion", ("distortion", "rate")),
        ("information", ("mutual_information", "prior_gap")),
    ):
        cells = results.tree[group].to_dataset()
        exact, rounded = (cells.sel(precision=precision) for precision in ("float32", "bfloat16"))
        for name in names:
            assert (exact[name] != rounded[name]).all()
            error = np.hypot(exact[f"{name}_se"], rounded[f"{name}_se"])
            assert (abs(exact[name] - rounded[name]) < 4.27 * error).all()
    with pytest.raises(InputError, match=r"precision: .*float32.*tf32.*bfloat16"):
        STUDY.replace(precision="half")
