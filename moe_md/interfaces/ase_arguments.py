"""Arguments of the ASE calculator: its keywords, its device, and whether its inputs have changed."""

from typing import Any, NamedTuple

import jax
import numpy as np

PLATFORMS = ("cpu", "gpu", "tpu", "cuda")


def checked_device(device: str | jax.Device | None) -> jax.Device | None:
    """The jax device of this name, the first of its kind; None where none is named.

    Args:
        device: "cpu", "gpu", "tpu", "cuda" (the same as "gpu"), a `jax.Device`, or None.

    Raises:
        ValueError: jax has no such device.

    >>> checked_device("cpu").platform
    'cpu'
    """
    if device is None or isinstance(device, jax.Device):
        return device
    if isinstance(device, str) and device in PLATFORMS:
        try:
            return jax.devices(device)[0]
        except RuntimeError:  # jax has no such backend
            pass
    found = sorted({d.platform for d in jax.devices()} | {"cpu"})
    raise ValueError(
        f"device must be one of {', '.join(PLATFORMS)} or a jax.Device, and jax must have it, "
        f"got {device!r:.80}. jax has here: {', '.join(found)}."
    )


def device_of(platform: str, number: int) -> jax.Device:
    """A device of another process, found again by its kind and number.

    Raises:
        ValueError: jax does not have it here.
    """
    try:
        return next(device for device in jax.devices(platform) if device.id == number)
    except (RuntimeError, StopIteration):
        raise ValueError(
            f"device must exist here too, got {platform}:{number}: make a new MixtureCalculator, or use a"
            " process that has it."
        ) from None


class CalculatorInputs(NamedTuple):
    """What an energy depends on besides the atoms; `same_inputs` compares two of them."""

    structure: Any  # the region's pytree without its arrays
    values: list  # arrays of the region: jax's own ones, copies of others
    params: list  # arrays of the experts, which cannot be written to


def calculator_inputs(region, params) -> CalculatorInputs:
    """Region and parameters as they are now; arrays that can be written to are copied.

    Args:
        region: an expert's number, one number for each atom, or a region of `mm.regions`.
        params: pytrees of arrays, from `frozen`.
    """
    leaves, structure = jax.tree.flatten(region if hasattr(region, "gate") else np.asarray(region))
    values = [x if isinstance(x, jax.Array) else np.array(x) for x in leaves]
    return CalculatorInputs(structure, values, jax.tree.leaves(params))


def same_inputs(a: CalculatorInputs, b: CalculatorInputs) -> bool:
    """Whether two inputs give the same energy of the same atoms."""
    if a.structure != b.structure or len(a.params) != len(b.params):
        return False
    same_params = all(x is y for x, y in zip(a.params, b.params))
    return same_params and all(x is y or np.array_equal(x, y) for x, y in zip(a.values, b.values))


def frozen(params):
    """Parameters whose arrays cannot be written to: jax's as they are, copies of numpy's."""

    def of_leaf(x):
        if isinstance(x, jax.Array):
            return x
        copy = np.array(x)
        copy.flags.writeable = False
        return copy

    return jax.tree.map(of_leaf, params)


def read_only(name: str, text: str) -> property:
    """A property for the attribute `_name`; setting it raises `AttributeError` with the remedy."""

    def get(self):
        return getattr(self, f"_{name}")

    def refuse(self, value) -> None:
        raise AttributeError(f"{name} cannot be changed, got {value!r:.80}. Make a new MixtureCalculator.")

    return property(get, refuse, doc=text)
