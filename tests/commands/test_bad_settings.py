"""Malformed settings files: existing files of results survive; see `bad_input`."""

import contextlib
import io
import math
import tomllib
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path

import pytest
from bad_input import examples, odd, valid_or_clear
from hypothesis import given
from hypothesis import strategies as st

from moe_md import checkpoint
from moe_md.commands import bench, demo, frames, region, settings_file, train
from moe_md.commands import main as cli
from moe_md.commands import run as md
from moe_md.data import dataset as datasets
from moe_md.data.reading import read_frames
from moe_md.settings import (
    BenchSettings,
    DataSettings,
    DemoSettings,
    EnvironmentSettings,
    LossWeights,
    RegionScanSettings,
    RunSettings,
    TrainSettings,
)
from moe_md.training import cotrain

TABLES = {
    "data": DataSettings,
    "training": TrainSettings,
    "region": RegionScanSettings,
    "run": RunSettings,
    "bench": BenchSettings,
    "demo": DemoSettings,
}
TOML_VALUES = (
    *(
        "3",
        "-1",
        "0",
        "2.5",
        "nan",
        "inf",
        "-inf",
        "true",
        "'text'",
        "''",
        "[]",
        "[1, 2]",
        "{}",
        "{a = 1}",
        "1e400",
    ),
    *(
        "1" + "0" * 40,
        "9" * 5000,
        "1979-05-27",
        "[[[]]]",
        "1e-320",
        "0x7fffffff",
        "2147483648",
        '"\\u0000"',
        "float64",
    ),
    *("'Pt'", "'nve'", "1.0", "1000"),
)
GARBAGE = (
    *(
        "",
        "[",
        "]",
        "[]",
        "a",
        "= 3",
        "[training",
        "training = 3",
        "[[training]]",
        "[training.weights.deeper]",
        "\x00",
    ),
    *(
        "[training]\n[training]",
        "steps = 3",
        "[trainings]",
        "a = " + "[" * 5000,
        "[demo]\nlayers = 3\nlayers = 4",
    ),
    *(
        "[training]\nweights = 3",
        "[training]\nweights = {force = 1}",
        "[training.weights]\nenergy = 'much'",
        "\ufeff",
    ),
    *(
        "[expensive]\nbuilder = []",
        "[cheap]\nbuilder = 3",
        "[cheap]\ndomain = 3",
        "[run.steps]",
        "[" + "a." * 400 + "a]",
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


@st.composite
def toml_texts(draw):
    if draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from(GARBAGE))
    lines = []
    for table, cls in draw(st.permutations(sorted(TABLES.items(), key=lambda item: item[0])))[:2]:
        lines.append(f"[{table}]")
        for field in draw(
            st.lists(st.sampled_from(fields(cls)), min_size=1, max_size=3, unique_by=lambda f: f.name)
        ):
            lines.append(f"{field.name} = {draw(st.sampled_from(TOML_VALUES))}")
        if table == "training" and draw(st.booleans()):
            name = draw(st.sampled_from(fields(LossWeights))).name
            lines += ["[training.weights]", f"{name} = {draw(st.sampled_from(TOML_VALUES))}"]
    return "\n".join(lines)


def check_settings(settings) -> None:
    """Assert that each field has its declared type and is finite."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            check_settings(value)
        elif field.type in (int, "int"):
            assert type(value) is int and abs(value) < 2**31, field.name
        elif field.type in (float, "float"):
            assert type(value) in (int, float) and math.isfinite(value), field.name
        elif field.type in (str, "str"):
            assert type(value) is str, field.name


@pytest.fixture(scope="module")
def results_folder(folder):
    """A folder with results that must not change."""
    out = folder / "out"
    out.mkdir()
    for name in ("checkpoint.msgpack", "training.msgpack", "run.json"):
        (out / name).write_bytes(f"results in {name}".encode())
    return out


def content_of(folder) -> dict:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@examples(150)
@given(text=toml_texts(), table=st.sampled_from(sorted(TABLES)))
def test_malformed_settings(folder, results_folder, text, table):
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    command = "train" if table in ("training", "data") else table
    err, seen = run_stubbed(command, "--settings", path, "--out", results_folder)
    if err:
        assert err.startswith("moe-md: error: ") and err.count("\n") == 1, err
        keys = {f.name for cls in (*TABLES.values(), LossWeights) for f in fields(cls)}
        assert path.name in err or any(key in err for key in keys), err
    else:
        check_settings(seen)


@lru_cache
def parser_and_dataset():
    """The parser and a dataset of two frames, made once."""
    return cli.make_parser(), datasets.dataset_from_frames(read_frames(datasets.ptco_pbe())[:2])


def run_stubbed(*arguments):
    """Output on stderr and settings of a command whose work is replaced by a function that does nothing."""
    seen, err = [], io.StringIO()

    def keep(settings):
        seen.append(settings)

    parser, small = parser_and_dataset()

    def trained(experts, train, settings, **_):
        keep(settings)
        return checkpoint.Checkpoint(experts, (), {}, {"history": []})

    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stderr(err),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        patch.setattr(cli, "make_parser", lambda: parser)
        patch.setattr(md, "run", lambda settings, *_: keep(settings))
        patch.setattr(region, "run", lambda settings, *_: keep(settings))
        patch.setattr(bench, "run", lambda settings, *_: keep(settings))
        patch.setattr(
            settings_file,
            "echo",
            lambda folder, content, typed: tomllib.loads(settings_file.written(content)),
        )
        patch.setattr(
            demo, "run", lambda settings, *_: keep(settings) or dict.fromkeys(demo.SUMMARY_KEYS, 1.0)
        )
        patch.setattr(cotrain, "cotrain", trained)
        halves = (small._replace(frames=small.frames[:1]), small._replace(frames=small.frames[1:]))
        patch.setattr(train.data, "split_by_group", lambda dataset, **_: halves)
        patch.setattr(frames, "load", lambda settings: check_settings(settings) or small)
        patch.setattr(checkpoint, "save", lambda *_: None)
        patch.setattr(train, "write_json", lambda *_: None)
        before = content_of(Path(arguments[-1]))
        code = cli.main([str(a) for a in arguments])
        assert content_of(Path(arguments[-1])) == before
    assert code == (2 if err.getvalue() else 0)
    return err.getvalue(), seen[0] if seen else None


def test_binary_settings(folder, results_folder):
    path = folder / "settings.toml"
    for data in (b"\xff\xfe", b"\x00" * 9, "[run]".encode("utf-16")):
        path.write_bytes(data)
        assert "settings.toml" in run_stubbed("bench", "--settings", path, "--out", results_folder)[0]


@examples(80)
@given(st.sampled_from((TrainSettings, LossWeights, EnvironmentSettings)), st.data())
def test_arguments_of_training_settings(cls, data):
    name, value = data.draw(st.sampled_from([f.name for f in fields(cls)])), data.draw(odd)
    made = valid_or_clear(lambda: cls(**{name: value}), name)
    if made is not None and name != "references":
        number = getattr(made, name)
        assert is_dataclass(number) or (not isinstance(number, bool) and math.isfinite(number))
