"""The steps at which learning curves have a point."""

import numpy as np


def probe_steps(steps: int, points: int) -> list[int]:
    """Steps spaced logarithmically from 1 to ``steps``.

    Example:
        >>> probe_steps(100, 5)
        [1, 3, 10, 32, 100]
    """
    return sorted({int(step) for step in np.geomspace(1, steps, points).round()})
