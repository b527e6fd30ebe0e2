"""Numbers of rollouts, as hypothesis draws them."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

JUNK = [math.nan, math.inf, -math.inf, 1e30]  # what may stand where there is no action
EXACT = 1e-12  # float64, numbers up to ten


@st.composite
def rollouts(draw, min_actions=0):
    """Values and rewards (B, A) in float64, the mask, and how many actions each row has."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    numbers = st_numpy.arrays(np.float64, (rows, width), elements=st.floats(-10, 10, width=32))
    counts = st.lists(st.integers(min(min_actions, width), width), min_size=rows, max_size=rows)
    values, rewards, counts = draw(numbers), draw(numbers), draw(counts)
    mask = torch.arange(width) < torch.tensor(counts).unsqueeze(1)
    return torch.from_numpy(values), torch.from_numpy(rewards), mask
