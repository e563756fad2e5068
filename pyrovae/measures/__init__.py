"""Measures of a trained run, one file each: its `QUANTITIES`, and a function that returns their values.

Example:
    A file of yours, ``latent_scale.py``, which a study names as ``measure: {also: ["latent_scale:measure"]}``::

        from pyrovae.measures import MeasureResult, Quantity, TrainedRun

        QUANTITIES = (Quantity("latent_scale", "largest posterior mean", unit="1", heading="latent scale"),)

        def measure(run: TrainedRun) -> MeasureResult:
            return MeasureResult(latent_scale=run.encodings.train.mean.abs().max())
"""

from pyrovae.measures.measure import Caveat, MeasureResult, Quantity, TrainedRun

__all__ = ["Caveat", "MeasureResult", "Quantity", "TrainedRun"]
