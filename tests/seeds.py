"""Seeds of a statistical test: one in the suite, and fifty more with ``-m long``, of which none may fail."""

import pytest

any_seed = pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 51))])
