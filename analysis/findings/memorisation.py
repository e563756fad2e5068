"""What a study says of memorisation."""

from collections.abc import Iterator

import xarray as xr

from pyrovae.analysis.findings.statistics import Claim, cells, claimed


def about_memorisation(images: xr.Dataset) -> Iterator[Claim]:
    """Whether test images are reconstructed closer to training images by deep networks, and at β = 1 than below.

    An effect is a difference of distances ‖x̂ − x_n‖ of reconstructions to the nearest training image, in pixels of
    [0, 1], test image by test image.
    """
    distance = images["reconstruction_distance"].sel(split="test", drop=True)
    betas = sorted(distance.beta.values.tolist())
    depths = sorted(distance.depth.values.tolist()) if "depth" in distance.dims else []
    if 1.0 not in betas or distance.isnull().all():
        return
    if len(depths) > 1:
        shallow, deep = depths[0], depths[-1]
        text = f"At β = 1 the {deep}-layer network reconstructs test images closer to training images"
        text += f" than the {shallow}-layer one"
        for where, cell in cells(distance.sel(beta=1.0), {"seed", "image", "depth"}):
            yield claimed(text, where, cell.sel(depth=shallow), cell.sel(depth=deep), unit="pixels")
    if betas[0] < 1:
        deepest = distance.sel(depth=depths[-1:]) if depths else distance
        text = f"Reconstructions of test images are closer to training images at β = 1 than at β = {betas[0]:g}"
        for where, cell in cells(deepest, {"seed", "image", "beta"}):
            yield claimed(text, where, cell.sel(beta=betas[0]), cell.sel(beta=1.0), unit="pixels")
