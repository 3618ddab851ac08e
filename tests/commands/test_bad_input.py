"""Malformed files, settings and arguments: they work, or one clear error names what is at fault; nothing is
lost.

An error is clear if it is a ValueError (OSError for files that cannot be
opened), raised by a check of this package, that names the file, the key or the
argument. Whatever is let through must be whole: finite, of the right shape, usable.
"""

import contextlib
import gzip
import io
import math
import os
import pickle
import tomllib
import traceback
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path

import flax.serialization
import jax
import msgpack
import numpy as np
import pytest
from ase.data import chemical_symbols
from hypothesis import HealthCheck, Phase, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jax_md import space

import moe_md as mm
import moe_md.data
from moe_md import checkpoint, files
from moe_md.commands import bench, demo, settings_file
from moe_md.commands import main as cli
from moe_md.commands import run as md
from moe_md.data import dataset as datasets
from moe_md.data.batching import prepare
from moe_md.data.reading import read_frames
from moe_md.settings import BenchSettings, DataSettings, DemoSettings, LossWeights, RunSettings, TrainSettings
from moe_md.training import cotrain

HOME = str(Path(mm.__file__).parent)


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
    """The result, or None after a clear error that has one of the names in it."""
    try:
        return call()
    except (ValueError, OSError) as error:
        assert traceback.extract_tb(error.__traceback__)[-1].filename.startswith(HOME), (
            "not from a check of ours"
        )
        assert any(name in str(error) for name in names), f"{error} names none of {names}"
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


# Extended XYZ ----------------------------------------------------------------

WORDS = (
    "nan",
    "inf",
    "-1",
    "0",
    "1e400",
    "1e300",
    "abc",
    "",
    "T",
    "[1, 2]",
    "{}",
    '"',
    "1 2 3",
    "٣",
    "1j",
    "\x00",
)
PROPERTIES = (
    "species:S:1:pos:R:3",
    "species:S:1:pos:R:3:forces:R:2",
    "species:S:1:pos:R:3:forces:S:3",
    "species:S:1:pos:R:3:forces:L:3",
    "species:S:1:pos:R:3:forces:I:3",
    "species:S:1:pos:R:3:pos:R:3",
    "species:S:1:pos:R:3:forces:R:0",
    "species:S:1:pos:R:2:forces:R:4",
    "pos:R:3:forces:R:3:species:S:1",
    "species:S:1:forces:R:3",
    "forces:R:3:pos:R:3",
    "species:R:1:pos:R:3:forces:R:3",
    "species:S:1:pos:R:-3:forces:R:3",
    "species:S:1:pos:R:x:forces:R:3",
    "species:S:1:pos:R:3:numbers:R:3",
    "species:S:1:pos",
    ":",
    "",
)
LATTICES = (
    *("4 0 0 0 4 0 0 0", "4 4 4", "0 0 0 0 0 0 0 0 0", "nan 0 0 0 4 0 0 0 4", "inf 0 0 0 4 0 0 0 4"),
    *(
        "4 0 0 4 0 0 0 0 4",
        "1e-3 0 0 0 1e-3 0 0 0 1e-3",
        "0.3 0 0 0 4 0 0 0 4",
        "1e200 0 0 0 1e200 0 0 0 1e200",
        "a b c",
        "",
    ),
    *("-4 0 0 0 4 0 0 0 4", "1e-320 0 0 0 4 0 0 0 4", "4 0 0 0 4 0 0 0 4 5", "4 0 0 0 4 0 0 0 1e9"),
)
PBC = ("T T T", "F F F", "T T", "1 0 1", "yes no yes", "nan", "")


@st.composite
def xyz_texts(draw):
    """Two frames of three atoms, with up to three things wrong."""
    frames = []
    for k in range(2):
        header = {
            "Lattice": '"4.1 0 0 0 4.2 0 0 0 4.3"',
            "Properties": "species:S:1:pos:R:3:forces:R:3",
            "energy": f"{-3.5 - k}",
            "stress": '"0.1 0 0 0 0.2 0 0 0 0.3"',
            "pbc": '"T T T"',
            "origin": f"run-{k}",
        }
        rows = [["Pt", *(f"{0.9 * i + 0.1 * j + k:.3f}" for j in range(6))] for i in range(3)]
        frames.append([["3"], header, *rows])
    for _ in range(draw(st.integers(1, 3))):
        frame = draw(st.sampled_from(frames))
        what = draw(st.sampled_from(("count", "row", "key", "cell", "columns", "pbc", "line")))
        if what == "count":
            frame[0][0] = draw(
                st.sampled_from(("2", "4", "-3", "0", "3.0", "three", "", "99999999999", "3 3"))
            )
        elif what == "row" and len(frame) > 2:
            row = draw(st.sampled_from(frame[2:]))
            column = draw(st.integers(0, len(row)))
            row[column:] = [draw(st.sampled_from(("Xx", "pt", "Pt1", "8", *WORDS))), *row[column + 1 :]]
        elif what == "key":
            names = (
                "energy",
                "stress",
                "free_energy",
                "origin",
                "kind",
                "forces",
                "positions",
                "numbers",
                "pbc",
                "cell",
            )
            word = draw(st.sampled_from(WORDS))
            frame[1][draw(st.sampled_from(names))] = word if draw(st.booleans()) else f'"{word}"'
        elif what == "cell":
            frame[1]["Lattice"] = '"' + draw(st.sampled_from(LATTICES)) + '"'
        elif what == "columns":
            frame[1]["Properties"] = draw(st.sampled_from(PROPERTIES))
        elif what == "pbc":
            frame[1]["pbc"] = '"' + draw(st.sampled_from(PBC)) + '"'
        elif len(frame) > 2:
            at = draw(st.integers(2, len(frame) - 1))
            frame[at : at + 1] = draw(
                st.sampled_from(([], [frame[at]] * 2, [[""], frame[at]], [["#", "note"]]))
            )
    lines = []
    for count, header, *rows in frames:
        lines += [count[0], " ".join(f"{k}={v}" for k, v in header.items()), *(" ".join(r) for r in rows)]
    text = "\n".join(lines) + "\n"
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) and draw(st.booleans()) else text


def check_frames(frames) -> None:
    for frame in frames:
        n = len(frame.symbols)
        assert n > 0 and set(frame.symbols) <= set(chemical_symbols)
        assert frame.positions.shape == (n, 3) and frame.cell.shape == (3, 3) and frame.pbc.shape == (3,)
        assert frame.forces is None or frame.forces.shape == (n, 3)
        assert frame.stress is None or frame.stress.shape == (3, 3)
        for value in (frame.positions, frame.cell, frame.energy, frame.forces, frame.stress):
            assert value is None or (np.isfinite(value).all() and np.asarray(value).dtype == float)


def check_file(path) -> None:
    frames = valid_or_clear(lambda: read_frames(path), path.name)
    if frames is None:
        return
    assert frames
    check_frames(frames)
    dataset = valid_or_clear(lambda: datasets.load_dataset(path, ("Pt", "O")), "species")
    prepared = dataset and valid_or_clear(
        lambda: prepare(dataset, 3.0), "frame 0 of dataset", "frame 1 of dataset"
    )
    for rows in prepared.rows if prepared else ():
        assert np.isfinite(rows.displacement).all() and (rows.mask.sum() == 0 or rows.mask.shape[1] > 0)


@examples(150)
@given(xyz_texts())
def test_malformed_xyz(folder, text):
    path = folder / "frames.xyz"
    path.write_text(text, encoding="utf-8")
    check_file(path)


def test_the_unharmed_file_is_read(folder):
    """The generator's starting point is good: what fails above fails for what was done to it."""
    header = (
        'Properties=species:S:1:pos:R:3:forces:R:3 energy=-3.5 pbc="T T T" Lattice="4.1 0 0 0 4.2 0 0 0 4.3"'
    )
    (folder / "good.xyz").write_text(f"1\n{header}\nPt 0 0 0 1 2 3\n")
    (frame,) = read_frames(folder / "good.xyz")
    assert frame.energy == -3.5 and frame.forces.tolist() == [[1.0, 2.0, 3.0]]


@st.composite
def damaged(draw, whole: bytes):
    """Bytes changed, cut off, or put in."""
    data = bytearray(whole)
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


PACKAGED = datasets.ptco_pbe().read_bytes()
FEW_FRAMES = b"\n".join(gzip.decompress(PACKAGED).split(b"\n")[:18]) + b"\n"


@examples(60)
@given(damaged(FEW_FRAMES))
@example(b"")
@example(b"\x00\xff" * 50)
@example("3\n\nPt 0 0 0\n".encode("utf-16"))
def test_damaged_xyz(folder, data):
    path = folder / "damaged.xyz"
    path.write_bytes(data)
    check_file(path)


@examples(10)
@given(damaged(PACKAGED[:4000]))
def test_damaged_gzip(folder, data):
    path = folder / "damaged.xyz.gz"
    path.write_bytes(data)
    assert valid_or_clear(lambda: read_frames(path), path.name) is None


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


@examples(40)
@given(
    st.sampled_from(("path", "species", "energy_key", "forces_key", "stress_key", "group_key", "kind_key")),
    odd,
)
def test_arguments_of_load_dataset(folder, name, value):
    path = folder / "whole.xyz"
    path.write_bytes(FEW_FRAMES)
    dataset = valid_or_clear(lambda: datasets.load_dataset(**{"path": path, name: value}), name)
    if dataset is not None:
        check_frames(dataset.frames)
        assert all(isinstance(s, str) for s in dataset.species)


# Settings --------------------------------------------------------------------

TABLES = {
    "data": DataSettings,
    "training": TrainSettings,
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
    """Of the types that the fields declare, and finite."""
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
def lab(folder):
    """A folder of results that must survive; commands that stop once they know what to do."""
    out = folder / "out"
    out.mkdir()
    for name in ("checkpoint.msgpack", "training.msgpack", "run.json"):
        (out / name).write_bytes(f"precious {name}".encode())
    return out


def content_of(folder) -> dict:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@examples(150)
@given(text=toml_texts(), table=st.sampled_from(sorted(TABLES)))
def test_malformed_settings(folder, lab, text, table):
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    command = "train" if table in ("training", "data") else table
    err, seen = run_stubbed(command, "--settings", path, "--out", lab)
    if err:
        assert err.startswith("moe-md: error: ") and err.count("\n") == 1, err
        keys = {f.name for cls in (*TABLES.values(), LossWeights) for f in fields(cls)}
        assert path.name in err or any(key in err for key in keys), err
    else:
        check_settings(seen)


@lru_cache
def slow_to_make():
    return cli._parser(), datasets.dataset_from_frames(read_frames(datasets.ptco_pbe())[:2])


def run_stubbed(*arguments):
    """What the command said on stderr, and the settings it would have worked by."""
    seen, err = [], io.StringIO()

    def keep(settings):
        seen.append(settings)

    parser, small = slow_to_make()

    def trained(experts, train, settings, **_):
        keep(settings)
        return checkpoint.Checkpoint(experts, (), {}, {"history": []})

    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stderr(err),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        patch.setattr(cli, "_parser", lambda: parser)
        patch.setattr(md, "run", lambda settings, *_: keep(settings))
        patch.setattr(bench, "run", lambda settings, *_: keep(settings))
        patch.setattr(
            cli.settings_file,
            "echo",
            lambda folder, content, typed: tomllib.loads(settings_file.written(content)),
        )
        patch.setattr(
            demo, "run", lambda settings, *_: keep(settings) or dict.fromkeys(demo.SUMMARY_KEYS, 1.0)
        )
        patch.setattr(cotrain, "cotrain", trained)
        patch.setattr(mm.data, "split_by_group", lambda dataset, **_: (dataset, dataset))
        patch.setattr(
            cli,
            "_dataset",
            lambda parsed: check_settings(settings_file.settings(DataSettings, "data", parsed)) or small,
        )
        patch.setattr(checkpoint, "save", lambda *_: None)
        patch.setattr(cli, "write_json", lambda *_: None)
        before = content_of(Path(arguments[-1]))
        code = cli.main([str(a) for a in arguments])
        assert content_of(Path(arguments[-1])) == before
    assert code == (2 if err.getvalue() else 0)
    return err.getvalue(), seen[0] if seen else None


def test_binary_settings(folder, lab):
    path = folder / "settings.toml"
    for data in (b"\xff\xfe", b"\x00" * 9, "[run]".encode("utf-16")):
        path.write_bytes(data)
        assert "settings.toml" in run_stubbed("bench", "--settings", path, "--out", lab)[0]


@examples(80)
@given(st.sampled_from((TrainSettings, LossWeights)), st.data())
def test_arguments_of_training_settings(cls, data):
    name, value = data.draw(st.sampled_from([f.name for f in fields(cls)])), data.draw(odd)
    made = valid_or_clear(lambda: cls(**{name: value}), name)
    if made is not None and name != "metal":
        number = getattr(made, name)
        assert is_dataclass(number) or (not isinstance(number, bool) and math.isfinite(number))


# Checkpoints -----------------------------------------------------------------

PAIR = (
    mm.experts.lennard_jones(("Pt", "C"), 3.0),
    mm.experts.power_spectrum(("Pt", "C"), 3.0, l_max=1, num_bessels=2, num_channels=2, hidden=(3,)),
)


def good_content() -> dict:
    params = [jax.tree.map(np.asarray, e.init(jax.random.key(0))) for e in PAIR]
    return {
        "experts": [e.config for e in PAIR],
        "params": params,
        "settings": {"steps": 3},
        "record": {"a": [1.5]},
    }


def same(first, second) -> bool:
    return jax.tree.structure(first) == jax.tree.structure(second) and all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second))
    )


@pytest.fixture(scope="module")
def written(folder):
    path = folder / "written.msgpack"
    files.write(path, checkpoint.FORMAT, good_content())
    return path.read_bytes()


@examples(100)
@given(st.data())
def test_damaged_checkpoints(folder, written, data):
    """Whatever happened to the bytes is noticed, or changed nothing."""
    path = folder / "damaged.msgpack"
    changed = data.draw(damaged(written))
    path.write_bytes(changed)
    loaded = valid_or_clear(lambda: mm.load(path), path.name)
    if loaded is not None:
        assert same(loaded.params, tuple(good_content()["params"])) and loaded.record == {"a": [1.5]}
    assert path.read_bytes() == changed


def deep(n: int):
    value: dict = {}
    for _ in range(n):
        value = {"a": value}
    return value


TAMPERED = (
    *(lambda c, v=v: c.update(format=v) for v in (0, 2, "1", None, 1.0, True, [1], 10**18)),
    *(
        lambda c, k=k, v=v: c.update({k: v})
        for k in ("experts", "params")
        for v in (None, 3, "x", [], {}, [3], {"0": 3})
    ),
    *(
        lambda c, k=k, v=v: c.update({k: v})
        for k in ("settings", "record", "more")
        for v in (3, "x", [], None)
    ),
    *(lambda c, k=k, n=n: c[k].update(deep(n)) for k in ("settings", "record") for n in (40, 300, 900)),
    *(lambda c, k=k: c.pop(k) for k in ("format", "experts", "params", "settings", "record")),
    *(
        lambda c, v=v: c["settings"].update(code=v)
        for v in (msgpack.ExtType(5, b"x"), msgpack.ExtType(1, b"x"), msgpack.Timestamp(1), b"raw", 1j)
    ),
    *(
        lambda c, e=e, k=k, v=v: c["experts"][e].update({k: v})
        for e in (0, 1)
        for k in ("builder", "species", "cutoff", "allowed_species", "unknown")
        for v in (
            "os.system",
            3,
            -1.0,
            math.nan,
            math.inf,
            None,
            [],
            ["Pt", "Pt"],
            ["Pt", 3],
            {"a": 1},
            10**18,
            True,
        )
    ),
    *(
        lambda c, k=k, v=v: c["experts"][1].update({k: v})
        for k in (
            "num_channels",
            "num_bessels",
            "hidden",
            "polynomial_cutoff_p",
            "avg_num_neighbors",
            "l_max",
        )
        for v in (-1, 0, 2.5, "x", None, [10**12], [-1], [[]], 10**12, math.nan, 1e300, [10**6] * 3, True)
    ),
    *(
        lambda c, v=v: c["params"][0].update(sigma=v)
        for v in (
            *(
                np.array(math.nan),
                np.array(math.inf),
                np.zeros(2),
                np.zeros((0, 2**40)),
                "x",
                None,
                3.0,
                [1.0],
                {},
            ),
            *(
                np.array(1),
                np.array(1j),
                np.array("x"),
                np.array(True),
                np.zeros((), "V8"),
                np.float32("nan"),
            ),
        )
    ),
    lambda c: c["params"][1].pop("scale"),
    lambda c: c["params"][1].update(more=np.zeros(1)),
    lambda c: c["params"].append(c["params"][0]),
    lambda c: c["params"].reverse(),
)


@examples(200)
@given(st.lists(st.sampled_from(TAMPERED), min_size=1, max_size=2), st.booleans())
def test_tampered_checkpoints(folder, edits, signed):
    """Edited by someone who knows the format, with or without its digest."""
    path = folder / "tampered.msgpack"
    content = {"format": checkpoint.FORMAT, **good_content()}
    content["experts"] = [dict(config) for config in content["experts"]]
    for edit in edits:
        # What a second edit is about may be gone by the first.
        with contextlib.suppress(KeyError, IndexError, AttributeError, TypeError):
            edit(content)
    try:
        data = flax.serialization.msgpack_serialize(content)
        digest = {"sha256": files._sha256(content)} if signed else {}
        data = flax.serialization.msgpack_serialize({**content, **digest})
    except Exception:
        return  # not to be stored at all
    path.write_bytes(data)
    loaded = valid_or_clear(lambda: mm.load(path), path.name)
    if loaded is not None:
        for expert, params in zip(loaded.experts, loaded.params, strict=True):
            assert (
                math.isfinite(expert.cutoff)
                and expert.cutoff > 0
                and all(isinstance(s, str) for s in expert.species)
            )
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
            wanted = jax.eval_shape(expert.init, jax.random.key(0))
            assert jax.tree.map(np.shape, wanted) == jax.tree.map(np.shape, params)


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@examples(10)
@given(st.integers(0, 5), st.sampled_from(("checkpoint", "array", "text", "settings", "training")))
def test_pickles_are_not_executed(folder, protocol, where):
    target, path = folder / "executed", folder / "bomb.msgpack"
    bomb = pickle.dumps(Bomb(target), protocol=protocol)
    if where == "checkpoint":
        path.write_bytes(bomb)
    elif where == "array":  # an array of objects is a pickle in disguise
        array = msgpack.ExtType(1, msgpack.packb(((1,), "object", bomb)))
        path.write_bytes(msgpack.packb({"format": 1, "params": array}))
    elif where == "text":
        path.write_bytes(msgpack.packb({"format": 1, "params": bomb}))
    else:
        path.write_bytes(msgpack.packb({"format": 1, where: msgpack.ExtType(80, bomb)}))
    assert valid_or_clear(lambda: mm.load(path), path.name) is None
    assert valid_or_clear(lambda: files.read(path, "a saved training", 1, ("a",)), path.name) is None
    assert not target.exists()
    pickle.loads(bomb)
    target.rmdir()  # the bomb works


# Arguments of builders -------------------------------------------------------

POSITION = np.array([[1.0, 1.0, 1.0], [2.5, 1.0, 1.0], [1.0, 2.5, 1.0], [7.0, 7.0, 7.0]])
BASE = {
    mm.regions.fixed: {"assignment": [0, 1, 1, 0], "n_experts": 2},
    mm.regions.slab: {"position": POSITION, "lower": 0.0, "upper": 2.0, "axis": 2, "n_experts": 2},
    mm.regions.sphere: {
        "position": POSITION,
        "center": [1.0, 1.0, 1.0],
        "radius": 2.0,
        "blend": 1.0,
        "displacement_fn": None,
    },
    mm.regions.around: {"seeds": [0, 1], "r_core": 2.0, "r_blend": 1.0},
    mm.regions.coordination: {"low": 1.0, "high": 2.0, "r_full": 1.6, "r_none": 2.4, "slack": 0.1},
    mm.regions.descriptor: {
        "scalar_fn": lambda _, rows: jax.numpy.sum(rows.mask, axis=1) * 0.5,
        "low": 1.0,
        "high": 2.0,
        "cutoff": 2.0,
    },
}


def usable(builder, made) -> None:
    free, _ = space.free()
    everyone = jax.numpy.asarray([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    near = None
    if builder in (mm.regions.coordination, mm.regions.descriptor):
        near = mm.regions.RegionNeighbors(jax.numpy.zeros(4, int), everyone, np.inf, None)
    weights = np.asarray(made.gate(jax.numpy.asarray(POSITION), free, near))
    assert np.isfinite(weights).all() and (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)


CASES = [(builder, name) for builder, base in BASE.items() for name in base]


@examples(150)
@given(st.sampled_from(CASES), odd)
def test_arguments_of_regions(case, value):
    builder, name = case
    made = valid_or_clear(lambda: builder(**{**BASE[builder], name: value}), name)
    if made is not None and name not in ("assignment", "position", "seeds", "scalar_fn"):
        usable(builder, made)


@examples(20)
@given(st.sampled_from((mm.regions.union, mm.regions.complement, mm.regions.nested, mm.regions.custom)), odd)
def test_arguments_of_regions_of_regions(builder, value):
    names = ("region", "gate_fn")
    valid_or_clear(lambda: builder(value), *names)


# Builders of experts, mixtures and runs ----------------------------------------

FREE, SHIFT = space.free()
SPECIES_OF = np.array([0, 0, 1, 0])
EXPERT_BASE = {
    mm.experts.lennard_jones: {
        "species": ("Pt", "C"),
        "cutoff": 3.0,
        "epsilon": 1.0,
        "sigma": 1.0,
        "onset": 2.0,
        "allowed_species": None,
    },
    mm.experts.power_spectrum: {
        "species": ("Pt", "C"),
        "cutoff": 3.0,
        "l_max": 1,
        "num_bessels": 2,
        "num_channels": 2,
        "hidden": (3,),
        "polynomial_cutoff_p": 6.0,
        "avg_num_neighbors": 10.0,
        "allowed_species": None,
    },
    mm.experts.embedded_atom: {
        "species": ("Pt", "C"),
        "cutoff": 3.0,
        "num_bessels": 2,
        "num_densities": 1,
        "hidden": (3,),
        "polynomial_cutoff_p": 6.0,
        "avg_num_neighbors": 10.0,
        "allowed_species": None,
    },
    mm.experts.allegro: {
        "species": ("Pt", "C"),
        "cutoff": 3.0,
        "l_max": 1,
        "parity": True,
        "num_layers": 1,
        "num_scalar_features": 4,
        "num_tensor_features": 2,
        "num_bessels": 2,
        "polynomial_cutoff_p": 6.0,
        "scalar_embed_mlp": (3,),
        "allegro_mlp": (3,),
        "readout_mlp": (3,),
        "avg_num_neighbors": 10.0,
        "path_channel_coupling": True,
        "nonlinearity": "silu",
        "pair_cutoffs": None,
        "zbl": False,
        "allowed_species": None,
    },
}
NEQUIP_BASE = {
    "species": ("Pt", "C"),
    "cutoff": 3.0,
    "l_max": 1,
    "num_layers": 1,
    "hidden_irreps": "4x0e",
    "num_bessels": 2,
    "radial_width": 2,
    "radial_depth": 1,
    "avg_num_neighbors": 10.0,
    "allowed_species": None,
}
EXPERT_CASES = [(builder, name) for builder, base in EXPERT_BASE.items() for name in base]


@examples(60)
@given(st.sampled_from(sorted(NEQUIP_BASE)), odd)
def test_arguments_of_nequip(name, value):
    """Only built: jax-md is slow to begin."""
    valid_or_clear(lambda: mm.experts.nequip(**{**NEQUIP_BASE, name: value}), name)


@examples(150)
@given(st.sampled_from(EXPERT_CASES), odd)
def test_arguments_of_experts(case, value):
    builder, name = case
    made = valid_or_clear(lambda: builder(**{**EXPERT_BASE[builder], name: value}), name)
    if made is not None:
        assert (
            math.isfinite(made.cutoff) and made.cutoff > 0 and all(isinstance(s, str) for s in made.species)
        )
        shapes = jax.eval_shape(made.init, jax.random.key(0))
        flax.serialization.msgpack_serialize(made.config)
        if sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) < 10_000:
            assert jax.tree.map(
                np.shape, mm.experts.build(made.config).init(jax.random.key(0))
            ) == jax.tree.map(lambda x: x.shape, shapes)


MIXTURE_BASE = {
    "box": 10.0,
    "potentials": tuple((e, e.init(jax.random.key(0))) for e in PAIR),
    "species": SPECIES_OF,
    "region": mm.regions.fixed([0, 1, 1, 0]),
    "dr_threshold": 0.4,
    "capacity_multiplier": 1.25,
    "chunk_size": 64,
}


@examples(80)
@given(st.sampled_from(sorted(MIXTURE_BASE)), odd)
def test_arguments_of_mixtures(name, value):
    made = valid_or_clear(lambda: mm.mixture_neighbor_list(FREE, **{**MIXTURE_BASE, name: value}), name)
    if made is not None:
        neighbor_fn, _ = made
        valid_or_clear(lambda: neighbor_fn.allocate(jax.numpy.asarray(POSITION)), name)


RUN_BASE = {
    "n_steps": 0,
    "position": POSITION,
    "masses": np.ones(4),
    "temperature_K": 300.0,
    "key": jax.random.key(0),
    "velocity": None,
    "chunk_steps": 5,
    "max_reallocations": 2,
}


class Started(Exception):
    """The arguments were let through."""


class NeighborFn:
    @staticmethod
    def allocate(position, **_):
        assert position.shape == (len(position), 3) and np.isfinite(position).all()
        raise Started


@examples(100)
@given(st.sampled_from(("nve", "langevin", "run")), st.data())
def test_arguments_of_dynamics(what, data):
    if what == "run":
        name = data.draw(st.sampled_from(sorted(RUN_BASE)))
        arguments = {**RUN_BASE, name: data.draw(odd)}
        with contextlib.suppress(Started):
            valid_or_clear(
                lambda: mm.simulate.run(NeighborFn, None, mm.simulate.nve(SHIFT, 1.0), **arguments), name
            )
        return
    base = {"timestep_fs": 1.0} | (
        {"temperature_K": 300.0, "friction_per_fs": 0.01} if what == "langevin" else {}
    )
    name, value = data.draw(st.sampled_from(sorted(base))), data.draw(odd)
    made = valid_or_clear(lambda: getattr(mm.simulate, what)(SHIFT, **{**base, name: value}), name)
    assert made is None or math.isfinite(getattr(made, name))
