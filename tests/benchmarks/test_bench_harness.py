"""What times, records, tabulates and compares benchmarks."""

import json

import numpy as np
import pytest
from small_benchmarks import run_here


def test_interleave_times_each_case_in_turn(harness):
    calls = []

    class Recorded:
        def __init__(self, name, seconds):
            self.name, self.seconds = name, seconds

        def advance(self):
            calls.append(self.name)
            return self.seconds

    timings = harness.interleave({"a": Recorded("a", 1.0), "b": Recorded("b", 2.0)}, repeats=3, warmup=1)
    assert [sorted(calls[k : k + 2]) for k in range(0, 8, 2)] == [["a", "b"]] * 4
    assert timings["a"].median == 1.0 and timings["b"].median == 2.0 and timings["a"].repeats == 3
    with pytest.raises(ValueError, match="repeats"):
        harness.interleave({}, repeats=0)


def test_timing_is_median_and_quartiles(harness):
    timing = harness.timing([5.0, 1.0, 2.0, 3.0, 4.0])
    assert timing == (3.0, 2.0, 4.0, 5)


def test_a_case_carries_its_state(harness):
    case = harness.Case(lambda x: x + 1, np.float32(0))
    assert case.advance() >= 0 and case.advance() >= 0
    assert float(case.state) == 2 and case.compile_seconds > 0


def test_results_are_appended(harness, tmp_path):
    harness.append(tmp_path, "x", {"a": 1})
    harness.append(tmp_path, "x", {"a": 2})
    assert harness.read(tmp_path, "x") == [{"a": 1}, {"a": 2}]
    assert harness.read(tmp_path, "y") == []
    with pytest.raises(ValueError):
        harness.append(tmp_path, "x", {"a": float("nan")})


def test_unknown_table_is_an_error(tables):
    with pytest.raises(ValueError, match="nothing"):
        tables.fill("<!-- table: nothing -->\n<!-- /table -->")


@pytest.mark.thorough
def test_regressions_are_told(tmp_path, capsys):
    """What was recorded a moment ago is reached again; what could not be is not."""
    import check_regression

    def check(*arguments):
        run_here("check_regression", tmp_path, "--smoke", "--results", str(tmp_path), *arguments)

    with pytest.raises(SystemExit, match="run with --record first"):
        check()
    check("--record")
    capsys.readouterr()
    check("--least", "0.05")
    printed = capsys.readouterr().out
    assert printed.count("of its roofline") >= 2 and printed.count("of its bound") >= 2
    (line,) = (tmp_path / "regression.jsonl").read_text().splitlines()
    assert check_regression.fallen(json.loads(line)["ratios"], json.loads(line)["ratios"], 1.0) == []


def test_ratios_that_fell_are_named(harness):
    import check_regression

    assert check_regression.fallen({"a": 0.5, "c": 1.0}, {"a": 0.6, "b": 0.1, "c": 2.0}, 0.8) == ["b", "c"]
