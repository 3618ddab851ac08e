"""Benchmarks as modules: what measures, and what fills the tables."""

import pytest
from small_benchmarks import BENCHMARKS


@pytest.fixture(autouse=True)
def _benchmarks_are_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def harness():
    import harness

    return harness


@pytest.fixture
def tables(harness):
    import tables

    return tables
