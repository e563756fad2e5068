"""Adam inside a training step, compared with torch's."""

from collections.abc import Callable

import pytest
import torch

from pyrovae import Study
from pyrovae.build import make_cohort_data
from pyrovae.runner.setup import start
from pyrovae.system.progress import StudyProgress
from pyrovae.training.adam import FLUSH_INTERVAL, Adam, step_sizes


@pytest.mark.parametrize("learning_rate", [1e-3, 0.5])
@pytest.mark.parametrize("update_", [Adam.update_, Adam.update_fused_])
def test_equals_torchs_adam_up_to_rounding(update_: Callable[..., None], learning_rate: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = {
        name: torch.randn(3, size, dtype=torch.float64, generator=generator) for name, size in (("w", 5), ("b", 2))
    }
    ours = {name: value.clone() for name, value in start.items()}
    theirs = {name: value.clone().requires_grad_() for name, value in start.items()}
    adam, optimizer = Adam.of(ours), torch.optim.Adam(theirs.values(), lr=learning_rate)
    for step in range(1, 301):
        gradients = {
            name: torch.randn(each.shape, dtype=each.dtype, generator=generator) for name, each in ours.items()
        }
        update_(adam, ours, gradients, step_sizes([learning_rate], step).double())
        for name, gradient in gradients.items():
            theirs[name].grad = gradient
        optimizer.step()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name].detach(), rtol=1e-6, atol=1e-6 * learning_rate * 300)
        assert (value - start[name]).abs().min() > 0


@pytest.mark.parametrize("update_", [Adam.update_, Adam.update_fused_])
def test_overflow_of_a_square_stops_only_its_weight(update_: Callable[..., None]) -> None:
    """A square that overflows before it is multiplied by 1 − β₂ counts as infinite."""
    params = {"w": torch.zeros(3)}
    adam = Adam.of(params)
    for step, gradient in ((1, [1e30, 1e20, 1.0]), (2, [1.0, 1.0, 1.0])):
        update_(adam, params, {"w": torch.tensor(gradient)}, step_sizes([0.1], step))
    assert adam.exp_avg_sq["w"].isfinite().tolist() == [False, True, True]
    assert params["w"][0] == 0
    torch.testing.assert_close(params["w"][1:], torch.tensor([-0.1670, -0.2]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("update_", [Adam.update_, Adam.update_fused_])
def test_gradients_may_be_views(update_: Callable[..., None]) -> None:
    params = {"w": torch.zeros(2, 2), "b": torch.zeros(5)}
    gradients = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T, "b": torch.ones(()).expand(5)}
    adam = Adam.of(params)
    update_(adam, params, gradients, step_sizes([0.1], 1))
    for name, gradient in gradients.items():
        torch.testing.assert_close(adam.exp_avg[name], 0.1 * gradient)


@pytest.mark.parametrize("update_", [Adam.update_, Adam.update_fused_])
def test_one_step_size_for_all_runs_equals_one_for_each(update_: Callable[..., None]) -> None:
    start, gradients = {"w": torch.randn(3, 4, 2)}, {"w": torch.randn(3, 4, 2)}
    one, each = ({"w": start["w"].clone()} for _ in range(2))
    update_(Adam.of(one), one, gradients, step_sizes([0.1], 1))
    update_(Adam.of(each), each, gradients, step_sizes([0.1, 0.1, 0.1], 1))
    assert torch.equal(one["w"], each["w"])
    assert not torch.equal(one["w"], start["w"])


@pytest.mark.parametrize("update_", [Adam.update_, Adam.update_fused_])
def test_each_run_has_its_own_step_size(update_: Callable[..., None]) -> None:
    """Bit for bit, what it is alone."""
    start = {"w": torch.randn(3, 4, 2), "b": torch.randn(3, 5)}
    gradients, rates = {name: torch.randn_like(value) for name, value in start.items()}, [0.1, 0.001, 0.1]
    together = {name: value.clone() for name, value in start.items()}
    update_(Adam.of(together), together, gradients, step_sizes(rates, 1))
    for run, rate in enumerate(rates):
        alone = {name: value[run : run + 1].clone() for name, value in start.items()}
        update_(
            Adam.of(alone),
            alone,
            {name: each[run : run + 1] for name, each in gradients.items()},
            step_sizes([rate], 1),
        )
        for name, value in alone.items():
            assert torch.equal(together[name][run], value[0])


def denormal(moment: torch.Tensor) -> int:
    return int(((moment != 0) & (moment.abs() < torch.finfo(moment.dtype).tiny)).sum())


@pytest.mark.parametrize("update_", [Adam.update_, Adam.update_fused_])
def test_flushing_keeps_moments_normal_and_changes_no_weight(update_: Callable[..., None]) -> None:
    """Gradients of any size end, as those of a unit that is not active any more."""
    sizes, zeros = torch.logspace(-6, 6, 200)[None], torch.zeros(1, 200)
    params = {flushed: {"w": torch.linspace(-2, 2, 200)[None]} for flushed in (True, False)}
    adams = {flushed: Adam.of(each) for flushed, each in params.items()}
    seen = 0
    for step in range(1500):
        if step % FLUSH_INTERVAL == 0:
            adams[True].flush_()
        for flushed, adam in adams.items():
            update_(adam, params[flushed], {"w": zeros if step > 9 else sizes}, step_sizes([1e-3], step + 1))
        assert denormal(adams[True].exp_avg["w"]) == denormal(adams[True].exp_avg_sq["w"]) == 0
        seen += denormal(adams[False].exp_avg["w"])
    assert seen > 0
    assert torch.equal(params[True]["w"], params[False]["w"])


def test_training_flushes_moments() -> None:
    study = Study.load("quick", steps=4, depth=1, width=4, train_images=32, test_images=32, batch_size=8)
    (cohort,) = study.cohorts()
    training, _ = start(study.measure, cohort, make_cohort_data(cohort.runs).to(torch.device("cpu")))
    training.lockstep.params["guide.encoder.0.bias"].fill_(-1e4)  # no unit is active
    moment = training.adam.exp_avg["guide.encoder.0.weight"].fill_(1e-40)
    training.stepper("never", StudyProgress(quiet=True))()
    assert moment.count_nonzero() == 0
