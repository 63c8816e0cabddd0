"""A signal whose every deflection is known, for the tests of pages."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

RATE = 100


@pytest.fixture(scope="session")
def signal() -> NDArray[np.int16]:
    """Twelve leads, ten seconds at 100 Hz: a P-QRS-T-like beat a second, another height in each lead."""
    t = np.arange(1000) / RATE % 1.0
    beat = (
        0.12 * np.exp(-(((t - 0.20) / 0.025) ** 2))
        + 1.1 * np.exp(-(((t - 0.37) / 0.012) ** 2))
        - 0.25 * np.exp(-(((t - 0.40) / 0.012) ** 2))
        + 0.3 * np.exp(-(((t - 0.62) / 0.05) ** 2))
    )
    heights = np.array([0.6, 1.0, 0.4, -0.8, 0.2, 0.7, -0.5, -0.9, 0.4, 1.2, 1.1, 0.8])
    return (heights[:, None] * beat * 1000).round().astype(np.int16)
