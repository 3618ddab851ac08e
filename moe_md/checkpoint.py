"""Checkpoints: experts, parameters, training settings and training record in one file.

The format is MessagePack of plain values and arrays (`files.py`); loading executes no code from the file.
"""

from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_md.data.references import Reference, reference_from_dict
from moe_md.experts.base import Expert, Params, Potential, build, potentials
from moe_md.experts.familiarity import familiarity_from_dict
from moe_md.files import read, signature, write
from moe_md.renamed import missing_attribute

FORMAT = 1


class Checkpoint(NamedTuple):
    """The result of a training."""

    experts: tuple[Expert, ...]  # most expensive first
    params: tuple[Params, ...]
    settings: dict  # fields of `TrainSettings`
    record: dict  # steps, seconds, data summary and validation errors of the training

    def __reduce__(self) -> tuple:
        """For pickle: parameters as numpy arrays, as jax would cast float64 where it reads them."""
        params = jax.tree.map(np.asarray, self.params)
        return Checkpoint, (self.experts, params, self.settings, self.record)

    @property
    def potentials(self) -> tuple[Potential, ...]:
        """Each expert with its parameters, the most expensive first."""
        return potentials(self.experts, self.params)

    @property
    def expensive(self) -> Potential:
        """The first potential."""
        return self.potentials[0]

    @property
    def cheap(self) -> Potential:
        """The last potential."""
        return self.potentials[-1]

    @property
    def level_of_theory(self) -> str:
        """Of the labels that it was trained on, such as "PBE, 400 eV"; empty where they did not name one."""
        return str(self.record.get("level_of_theory") or "")

    @property
    def references(self) -> tuple[Reference, ...]:
        """Crystals and other structures on which the experts were trained to agree; none in old files."""
        return tuple(reference_from_dict(content) for content in self.record.get("references", ()))


def __getattr__(name: str):
    raise missing_attribute(__name__, name)


def models() -> list[str]:
    """Names of the checkpoints shipped with the package."""
    folder = resources.files("moe_md") / "checkpoints"
    return sorted(p.name.removesuffix(".msgpack") for p in folder.iterdir() if p.name.endswith(".msgpack"))


def save(path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Args:
        path: file to write, in an existing folder.
        checkpoint: params may be jax or numpy arrays.

    Raises:
        OSError: the file cannot be written; a previous file is unchanged.
    """
    content = {
        "experts": [e.config for e in checkpoint.experts],
        "params": [jax.tree.map(np.asarray, p) for p in checkpoint.params],
        "settings": checkpoint.settings,
        "record": checkpoint.record,
    }
    if any(e.familiarity is not None for e in checkpoint.experts):
        content["familiarity"] = [e.familiarity and e.familiarity.to_dict() for e in checkpoint.experts]
    write(path, FORMAT, content)


def load(name_or_path) -> Checkpoint:
    """Read a checkpoint shipped with the package, or a file.

    Args:
        name_or_path: one of `models()`, such as `"ptco"`, or a path.

    Returns:
        The checkpoint, its experts built from their stored configuration.

    Raises:
        ValueError: there is no such name or file; the file is no checkpoint, was
            changed after it was written, or has another format version; or its
            parameters do not fit its experts or are not finite.
    """
    path = Path(name_or_path)
    if not path.is_file() and str(name_or_path) in models():  # a folder of that name does not count
        path = Path(str(resources.files("moe_md") / "checkpoints" / f"{name_or_path}.msgpack"))
    if not path.is_file():
        raise ValueError(
            f"name_or_path must be one of {models()} or an existing file, got {str(name_or_path)!r}."
        )
    keys = ("experts", "params", "settings", "record")
    content = read(path, "a moe_md checkpoint", FORMAT, keys, optional=("familiarity",))
    configs, params = (_in_order(path, key, content[key]) for key in ("experts", "params"))
    if len(configs) != len(params):
        raise ValueError(
            f"{path} must hold parameters for each of its {len(configs)} experts, got {len(params)}."
        )
    for key in ("settings", "record"):
        if not isinstance(content[key], dict):
            raise ValueError(f"{path} must hold a dict of {key}, got {content[key]!r:.80}.")
    experts = []
    for config, tree in zip(configs, params):
        try:
            experts.append(build(config))
            wanted = jax.eval_shape(_initial_params(experts[-1]))  # starts no backend, so that forks work
        except Exception as error:  # an edited config may fail in any part of a builder
            raise ValueError(
                f"{path} must describe experts that can be built, got {config!r:.200}: {error}"
            ) from error
        _check_params(path, config["builder"], wanted, tree)
    experts = _with_domains(path, experts, content.get("familiarity"))
    return Checkpoint(tuple(experts), tuple(params), content["settings"], content["record"])


def _with_domains(path: Path, experts: list[Expert], domains) -> list[Expert]:
    """Experts with the familiarity that a checkpoint holds for each, or none."""
    if domains is None:
        return experts
    domains = list(domains.values()) if isinstance(domains, dict) else domains  # flax stores a list as a dict
    if not isinstance(domains, list) or len(domains) != len(experts):
        raise ValueError(f"{path} must hold a familiarity for each expert, got {domains!r:.80}.")
    try:
        return [
            expert._replace(familiarity=None if domain is None else familiarity_from_dict(domain))
            for expert, domain in zip(experts, domains)
        ]
    except ValueError as error:
        raise ValueError(f"{path} must hold a familiarity that can be read: {error}") from None


def _initial_params(expert: Expert):
    return lambda: expert.init(jax.random.key(0))


def _in_order(path: Path, key: str, value) -> list:
    """A list of dicts; flax stores a list as a dict of indices."""
    if isinstance(value, dict) and all(str(k).isdecimal() for k in value):
        value = [value[k] for k in sorted(value, key=int)]
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise ValueError(f"{path} must hold a list of {key}, one dict each, got {value!r:.80}.")
    return value


def _check_params(path: Path, builder: str, wanted: Params, params: Params) -> None:
    """Raise where parameters have other shapes than the expert's, or are not finite floats."""
    wanted, found = (signature(tree, dtypes=False) for tree in (wanted, params))
    if wanted != found:
        raise ValueError(f"{path} must hold parameters of shapes {wanted} for {builder}, got {found}.")
    for leaf in jax.tree.leaves(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or not np.isfinite(leaf.astype(float)).all():
            raise ValueError(
                f"{path} must hold finite floating-point parameters for {builder}, got {leaf!r:.80}."
            )
