"""Data-parallel training: devices share the rows of every batch.

Parameters and optimiser state are replicated, and every device takes the same
step. The cost lies in the networks and their derivatives, which are computed row
by row. A batch is therefore padded to a multiple of the number of devices and
divided along its rows, whichever frames they belong to. Devices then sum the
energies and virials of frames, the forces on atoms, and the gradients of the
parameters. Batches are those of a single device, and losses differ only by the
order of sums.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe_md.data.batching import Batch
from moe_md.neighbors.rows import Neighborhood

ROWS = "rows"  # name of the mesh axis


class Placement(NamedTuple):
    """Functions that place a training's arrays on its devices."""

    mesh: Mesh | None  # None for jax's default device
    state: Callable  # (pytree) -> pytree, replicated on every device
    batch: Callable  # (Batch) -> Batch, padded, rows divided evenly, all else replicated; None stays None
    compiled: Callable  # (function) -> jitted function, its results replicated


def on_devices(devices: Sequence | None) -> Placement:
    """Placement of a training on devices.

    Args:
        devices: jax devices that share the rows of batches; None for jax's
            default device.

    Raises:
        ValueError: as `checked`.
    """
    if devices is None:
        return Placement(None, lambda tree: tree, lambda batch: batch, jax.jit)
    mesh = Mesh(np.array(checked(devices)), (ROWS,))
    replicated = NamedSharding(mesh, PartitionSpec())
    return Placement(
        mesh,
        lambda tree: jax.device_put(tree, replicated),
        partial(_divide_rows, mesh),
        partial(jax.jit, out_shardings=replicated),
    )


def _divide_rows(mesh: Mesh, batch: Batch | None) -> Batch | None:
    """A batch on the devices of a mesh: an equal share of the rows on each, all else replicated."""
    if batch is None:
        return None
    replicated, divided = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(ROWS))
    shardings = Batch._make(divided if name == "rows" else replicated for name in Batch._fields)
    return jax.device_put(padded(batch, mesh.size), shardings)


def map_row_shards(fn: Callable, mesh: Mesh | None, *, add: bool = False) -> Callable:
    """Apply a function of parameters and rows to each device's share of the rows.

    Without `shard_map`, XLA gathers the rows of small networks on every device.
    The gradient with respect to the parameters is summed over devices.

    Args:
        fn: `(params, pytree of [n_rows, ...]) -> pytree`.
        mesh: the devices; with None, `fn` is returned unchanged.
        add: True to sum the results over devices; False where they have one
            entry per row.
    """
    if mesh is None:
        return fn
    replicated, divided = PartitionSpec(), PartitionSpec(ROWS)
    return jax.shard_map(
        partial(_summed_over_devices, fn) if add else fn,
        mesh=mesh,
        in_specs=(replicated, divided),
        out_specs=replicated if add else divided,
        check_vma=add,  # an expert may scan or branch without declaring what varies over devices
    )


def _summed_over_devices(fn: Callable, params, content):
    """The result of `fn`, summed over all devices."""
    return jax.lax.psum(fn(params, content), ROWS)


def checked(devices: Sequence) -> list:
    """The devices as a list.

    Raises:
        ValueError: there is no device, one is repeated or belongs to another
            process, or an entry is no jax device.

    >>> checked(8)
    Traceback (most recent call last):
    ValueError: devices must be jax's devices, such as jax.devices(), got 8.
    """
    if not isinstance(devices, (list, tuple, np.ndarray)) or not all(
        isinstance(d, jax.Device) for d in devices
    ):
        raise ValueError(f"devices must be jax's devices, such as jax.devices(), got {devices!r:.200}.")
    if len(devices) == 0 or len(set(devices)) != len(devices):
        raise ValueError(
            f"devices must be at least one, and each only once, got {[str(d) for d in devices]}."
        )
    elsewhere = [str(d) for d in devices if d.process_index != jax.process_index()]
    if elsewhere:
        raise ValueError(f"devices must be of this process, got {elsewhere} of others.")
    return list(devices)


def padded(batch: Batch, multiple: int) -> Batch:
    """A batch with padded rows added up to a multiple of a number.

    >>> from moe_md.data.batching import collate
    >>> from moe_md.data.structures import fcc_supercell
    >>> batch = padded(collate([fcc_supercell("Pt", 3.98, 1)], ("Pt",), 3.0), 3)
    >>> batch.row_mask.tolist(), int(batch.rows.neighbor.max())
    ([True, True, True, True, False, False], 6)
    """
    n_rows, n_frames = len(batch.row_mask), len(batch.n_atoms)
    added = -n_rows % multiple
    if added == 0:
        return batch
    rows = batch.rows
    neighbor = np.where(rows.mask, rows.neighbor, n_rows + added).astype(rows.neighbor.dtype)
    return batch._replace(
        rows=Neighborhood(
            displacement=_extended(rows.displacement, added, 1.0),
            mask=_extended(rows.mask, added, False),
            center_species=_extended(rows.center_species, added, 0),
            neighbor_species=_extended(rows.neighbor_species, added, 0),
            neighbor=_extended(neighbor, added, n_rows + added),
        ),
        frame=_extended(batch.frame, added, n_frames),
        row_mask=_extended(batch.row_mask, added, False),
        forces=_extended(batch.forces, added, 0.0),
        forces_mask=_extended(batch.forces_mask, added, False),
    )


def _extended(x: jax.Array | np.ndarray, added: int, fill) -> np.ndarray:
    """An array with `added` rows of `fill` at its end."""
    return np.concatenate([x, np.full((added, *x.shape[1:]), fill, x.dtype)])
