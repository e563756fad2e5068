"""What a study found, as text for a terminal."""

import xarray as xr
from rich.table import Table

from pyrovae.analysis.claims import Claim


def rate_distortion(tree: xr.DataTree) -> Table:
    """D and R on train and test for every β and every value of the axes other than seed, means over seeds.

    The errors are standard errors over images, averaged over seeds.
    """
    data = tree["/rate_distortion"].to_dataset().mean("seed", skipna=True)
    axes = [str(dim) for dim in data["rate"].dims if dim != "split"]
    axes = [*(dim for dim in axes if dim != "beta"), "beta"]
    table = Table(title="nats per image, ± standard error over images, mean over seeds")
    for heading in [*axes, *(f"{name} {split}" for name in "DR" for split in ("train", "test")), "−ELBO test"]:
        table.add_column(heading, justify="right")
    for _, row in data.to_dataframe().reset_index().groupby(axes, sort=True):
        sides = row.set_index("split")
        cells = [
            f"{sides.loc[split, name]:.1f} ± {sides.loc[split, f'{name}_se']:.1f}"
            for name in ("distortion", "rate")
            for split in ("train", "test")
        ]
        table.add_row(*(f"{row[axis].iloc[0]}" for axis in axes), *cells, f"{-sides.loc['test', 'elbo']:.1f}")
    return table


def claims(found: list[Claim]) -> list[str]:
    """One line a claim."""
    return [
        f"{claim.verdict:>13}: {claim.text}"
        + (f" ({claim.where})" if claim.where else "")
        + f": {claim.effect:+.1f} ± {claim.error:.1f} nats, 95% over {claim.over}"
        for claim in found
    ]
