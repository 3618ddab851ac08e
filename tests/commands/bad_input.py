"""Helpers of the tests of malformed files, settings and arguments: each is accepted, or refused clearly.

A clear error is a ValueError (OSError for files that cannot be opened), raised
by a check of this package, that names the file, the key or the argument.
Accepted input must be valid: finite, of the right shape, usable.
"""

import math
import traceback
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import moe_md as mm

HOME = str(Path(mm.__file__).parent)
PAIR = (
    mm.experts.lennard_jones(("Pt", "C"), 3.0),
    mm.experts.power_spectrum(("Pt", "C"), 3.0, l_max=1, num_bessels=2, num_channels=2, hidden=(3,)),
)


def examples(n: int):
    return hypothesis_settings(
        derandomize=True,
        deadline=None,
        database=None,
        max_examples=n,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


def valid_or_clear(call, *names: str):
    """The result of a call, or None after a clear error that contains one of the names."""
    try:
        return call()
    except (ValueError, OSError) as error:
        assert traceback.extract_tb(error.__traceback__)[-1].filename.startswith(HOME), (
            "not raised by a check of this package"
        )
        assert any(name in str(error) for name in names), f"{error} names none of {names}"
        return None


@st.composite
def damaged(draw, original: bytes):
    """Bytes of a file of which some are changed, removed, cut off or inserted."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(("flip", "cut", "insert", "remove", "byte")))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[at:]
        elif how == "remove":
            del data[at : at + draw(st.integers(1, 40))]
        else:
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
    return bytes(data)


ODD = (
    *(
        None,
        True,
        -1,
        0,
        3,
        1.5,
        -2.5,
        1e308,
        math.nan,
        math.inf,
        -math.inf,
        10**400,
        1j,
        "",
        "text",
        "5",
        b"Pt",
    ),
    *(
        (),
        [],
        [[]],
        {},
        {"a": 1},
        [math.nan],
        [1, 2, 3],
        ["Pt"],
        ("Pt", "Pt"),
        "Pt",
        [None],
        object(),
        Ellipsis,
    ),
    *(
        np.zeros((2, 3)),
        np.array(["a"]),
        np.zeros(0),
        np.full((4, 3), math.nan),
        np.float64("nan"),
        np.int64(-7),
    ),
    *(
        2**31,
        1e-320,
        [0],
        [[1.0, 2.0]],
        range(3),
        np.ones((3, 3), complex),
        np.array([True, False, True, False]),
    ),
)
odd = st.sampled_from(ODD)
