"""Where a pair comes from, which it keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from pyrovae.study import Run


@dataclass(frozen=True)
class Origin:
    """The settings that a pair was made from, and what it was trained on.

    Attributes:
        run: the settings, β and γ among them; β is where training has moved it for a target rate.
        event_shape: shape of an image.
        train_images: number of training images; 0 before training.
        provenance: what the numbers of the training depend on: versions, device, execution mode and threads.
    """

    run: Run
    event_shape: torch.Size
    train_images: int = 0
    provenance: Mapping[str, str] = field(default_factory=dict)
