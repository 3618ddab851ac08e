"""The how-to's integrator runs, and its temperature is right."""

import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "own_integrator.md"


def test_the_page_runs_and_the_thermostat_thermalises():
    """108 atoms: a single temperature spreads by sqrt(2 / 324), 3.1 K."""
    names: dict = {}
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(code, PAGE.name, "exec"), names)
    late = names["result"].log.temperature_K[26:].reshape(15, -1).mean(axis=1)
    error = late.std(ddof=1) / np.sqrt(len(late))
    assert error < 1.5 and abs(late.mean() - 40.0) < 4 * error
