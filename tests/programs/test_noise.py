"""Seeding torch's global generators inside a block."""

from unittest import mock

import pytest
import torch

from pyrovae.programs.noise import fork_seed


def test_block_draws_what_its_seed_gives_and_changes_nothing_outside() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with fork_seed(7):
        drawn = torch.rand(3)
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)
    torch.manual_seed(7)
    torch.testing.assert_close(torch.rand(3), drawn, rtol=0, atol=0)


@pytest.mark.parametrize("in_use", [False, True])
def test_gpu_is_seeded_and_restored_only_if_it_is_in_use(in_use: bool) -> None:
    """Otherwise torch keeps the seed and a traceback for when it is, which is slow and is never undone."""
    state = torch.tensor([3], dtype=torch.uint8)
    with (
        mock.patch.object(torch.cuda, "is_initialized", return_value=in_use),
        mock.patch.object(torch.cuda, "current_device", return_value=0),
        mock.patch.object(torch.cuda, "get_rng_state", return_value=state),
        mock.patch.object(torch.cuda, "set_rng_state") as restored,
        mock.patch.object(torch.cuda, "manual_seed") as seeded,
        mock.patch.object(torch.cuda, "manual_seed_all") as queued,
    ):
        with fork_seed(7):
            assert [call.args for call in seeded.mock_calls] == [(7,)] * in_use
        assert [call.args[0] for call in restored.mock_calls] == [state] * in_use
        queued.assert_not_called()
