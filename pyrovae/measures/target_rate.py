"""β where training moved it for a target rate."""

from pyrovae.measures.measure import MeasureResult, Quantity, TrainedRun

QUANTITIES = (
    Quantity(
        "beta_final",
        "weight β of the rate at the end of a training that moved it for a target rate",
        unit="1",
        heading="β reached",
        format=".3g",
        headline=True,
    ),
    Quantity(
        "beta_spread",
        "standard deviation of β over the last steps of such a training",
        unit="1",
        heading="spread of β",
        format=".2g",
    ),
)


def measure(run: TrainedRun) -> MeasureResult:
    """β at the last step, and its standard deviation over the last 500 steps, with weights that decay."""
    if run.beta_spread is None:
        return MeasureResult(beta_final=None, beta_spread=None)
    return MeasureResult(beta_final=float(run.values["beta"]), beta_spread=run.beta_spread)
