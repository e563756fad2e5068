"""β where training moved it for a target rate."""

from pyrovae.measures.measure import MeasureResult, Quantity, TrainedRun

#: Largest distance between a rate and its target, as a share of the target, at which the target counts as reached.
TOLERANCE = 0.05
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
    """β at the last step, and its standard deviation over the last 500 steps, with weights that decay.

    A note says where the rate of the training images is not within 5% of its target.
    """
    if run.target_rate is None:
        return MeasureResult(beta_final=None, beta_spread=None)
    beta, rate = float(run.values["beta"]), float(run.terms[0].rate.mean())
    missed = abs(rate - run.target_rate) > TOLERANCE * run.target_rate
    note = (
        f"R is {rate:.4g} nats at β = {beta:.3g}, and the target {run.target_rate:g} was not reached" if missed else ""
    )
    return MeasureResult(beta_final=beta, beta_spread=run.beta_spread, note=note)
