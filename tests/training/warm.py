"""What a training loads late, loaded where its process is forked from: libraries, the base, what numba compiled."""

# ruff: noqa: F401

from __future__ import annotations

import numpy as np
import peft.tuners.lora.bnb
import peft.utils.transformers_weight_conversion
import pyarrow.dataset
import scipy.stats
import sklearn.metrics
import transformers.models.fast_vlm.modeling_fast_vlm
import transformers.models.llava.processing_llava

from components.models.bases import load_base
from components.pages.draw import draw
from components.pages.spec import page_in_style
from components.training import train, trainer, validation

load_base("ecg-tiny")
for style in ("riverside", "scanned"):
    draw(np.zeros((12, 1000), np.int16), 100, page_in_style(style, 0, 352, 256))
