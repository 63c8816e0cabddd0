"""Bootstrap intervals over patients, and paired differences from the same resamples.

Patients are drawn with replacement, and all records of a patient come along (a cluster bootstrap; Davison and
Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8), since two ECGs of one person are not
independent. The interval is the percentile interval of the resamples in which the metric is defined.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.evaluation.metrics import Floats

LEAST_DEFINED_SHARE = 0.5


def weightings(patient_ids: NDArray[np.object_], resamples: int, seed: int) -> Floats:
    """Weights float64 [records, 1 + resamples]: column 0 is all ones, the others one bootstrap draw each.

    They depend on the patients' order, `resamples` and `seed` only, so that two subjects of one exam are weighted
    alike and may be compared draw by draw.
    """
    patients, patient_of = np.unique(patient_ids.astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    weights = np.ones((len(patient_ids), 1 + resamples))
    for column in range(1, 1 + resamples):
        drawn = rng.integers(0, len(patients), size=len(patients))
        weights[:, column] = np.bincount(drawn, minlength=len(patients))[patient_of]
    return weights


def estimate(values: Floats, confidence: float, n: int) -> dict[str, Any]:
    """`{value, interval: [low, high], n}` from `values` [1 + resamples], value first; null where undefined.

    A metric undefined in more than half of the resamples has no interval: what is left is not a fair sample.
    """
    draws = values[1:][~np.isnan(values[1:])]
    tail = (1 - confidence) / 2
    enough = len(draws) > LEAST_DEFINED_SHARE * (len(values) - 1)
    low_high = [float(q) for q in np.quantile(draws, [tail, 1 - tail])] if enough else None
    value = None if np.isnan(values[0]) else float(values[0])
    return {"value": value, "interval": low_high if value is not None else None, "n": n}
