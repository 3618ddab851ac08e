"""Damaged and edited checkpoints; see `bad_input`."""

import contextlib
import math
import os
import pickle

import flax.serialization
import jax
import msgpack
import numpy as np
import pytest
from bad_input import PAIR, damaged, examples, valid_or_clear
from hypothesis import given
from hypothesis import strategies as st

import moe_md as mm
from moe_md import checkpoint, files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


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
    """Damage is detected, or does not change the content."""
    path = folder / "damaged.msgpack"
    changed = data.draw(damaged(written))
    path.write_bytes(changed)
    loaded = valid_or_clear(lambda: mm.load(path), path.name)
    if loaded is not None:
        assert same(loaded.params, tuple(good_content()["params"])) and loaded.record == {"a": [1.5]}
    assert path.read_bytes() == changed


def deep(n: int):
    """A dict nested n deep."""
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
    """Content that was edited in the right format, with or without a valid digest."""
    path = folder / "tampered.msgpack"
    content = {"format": checkpoint.FORMAT, **good_content()}
    content["experts"] = [dict(config) for config in content["experts"]]
    for edit in edits:
        # The first edit may have removed the target of the second.
        with contextlib.suppress(KeyError, IndexError, AttributeError, TypeError):
            edit(content)
    try:
        data = flax.serialization.msgpack_serialize(content)
        digest = {"sha256": files._sha256(content)} if signed else {}
        data = flax.serialization.msgpack_serialize({**content, **digest})
    except Exception:
        return  # cannot be stored
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
    """An object whose pickle makes a folder when it is loaded."""

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
    elif where == "array":  # an array of objects contains a pickle
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
    target.rmdir()  # the pickle was a working one
