"""What no hyper-parameter may be."""

import math

import numpy as np
from hypothesis import strategies as st

not_a_number = st.sampled_from(
    [
        None,
        "0.1",
        b"1",
        True,
        False,
        [0.1],
        (0.1,),
        {},
        1j,
        np.bool_(True),
        np.array([True]),
        np.array(["a"]),
        math.nan,
        math.inf,
        -math.inf,
    ]
)
negative = st.floats(max_value=0, exclude_max=True)
one_or_more = st.floats(min_value=1)
