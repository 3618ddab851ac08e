"""The crystal that tests of structures at rest share."""

import pytest
from argon_crystals import crystal_with_a_vacancy


@pytest.fixture(scope="module")
def vacancy():
    return crystal_with_a_vacancy()
