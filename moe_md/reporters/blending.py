"""Diagnostics of a dynamic region during a run: blended atoms, gate-gradient force, power and area.

    F_gate = - sum_ie E_i^e dw_ie/dR     gate-gradient force, part of the force
    P      = sum_ie E_i^e dw_ie/dt       = - F_gate . v, power: energy per time due to changing gates
    A      = V sum_i |dw_i0/dR_i|        area of the blending shell: the mean area of the surfaces of
                                         equal gate; V is the volume of an atom, i runs over blended atoms

An atom is blended where more than one expert has a gate w_ie above zero. On a blended
atom that no sphere is centred on, |F_gate| = |E_i^H - E_i^L| |grad w_i|, so agreement
between the experts keeps it small.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from moe_md import units
from moe_md.checks import check_positive
from moe_md.simulate.run import Frame, State

PS = 1000.0 * units.fs


class Blend(NamedTuple):
    """Diagnostics of one frame; in a log, each field has a leading axis of frames."""

    step: int | Int[np.ndarray, " frames"]
    time_ps: float | Float[np.ndarray, " frames"]
    share: Float[np.ndarray, "*frames experts"]  # fraction of atoms with a gate above zero
    # scalars; `gate_force` and `force` are NaN without blended atoms
    blended: Float[np.ndarray, "*frames"]  # fraction of atoms with a gate above zero for more than one expert
    gate_force: Float[np.ndarray, "*frames"]  # eV/Å, root mean square |F_gate| over blended atoms
    force: Float[np.ndarray, "*frames"]  # eV/Å, root mean square total force over blended atoms
    largest_gate_force: Float[np.ndarray, "*frames"]  # eV/Å, largest |F_gate| on any atom, seeds included
    power: Float[np.ndarray, "*frames"]  # eV/ps
    area: Float[np.ndarray, "*frames"]  # Å^2; NaN without the volume of an atom


class BlendWatch:
    """A reporter of `simulate.run` that computes `Blend` at each frame.

    Each frame costs about as much as one step.

    Args:
        neighbor_fn: of the mixture that runs.
        atomic_volume: Å^3, volume of an atom in the bulk, a^3 / 4 in an fcc
            crystal; needed for the area and the flux.
        costs: seconds per atom of each expert, or numbers
            proportional to them; needed for `s_max`.
        params, region: as given to the run; by default those of the builder. A
            run of `simulate.run_reassigned` needs `region`.

    Raises:
        ValueError: the volume or a cost is not positive.
    """

    def __init__(
        self,
        neighbor_fn,
        *,
        atomic_volume: float | None = None,
        costs: Sequence[float] | None = None,
        params=None,
        region=None,
    ) -> None:
        if atomic_volume is not None:
            check_positive("atomic_volume", atomic_volume)
        for cost in costs or ():
            check_positive("costs", cost)
        self._diagnose = jax.jit(partial(_diagnostics, neighbor_fn.parts))
        self._given: dict[str, Any] = {
            k: v for k, v in (("params", params), ("region", region)) if v is not None
        }
        self._atomic_volume = np.nan if atomic_volume is None else float(atomic_volume)
        self._costs = None if costs is None else np.asarray(costs, float)
        self._force = None
        self._frames: list[Blend] = []

    def __call__(self, frame: Frame) -> None:
        """Store the frame's force; with multiple time steps the state holds an impulse instead."""
        self._force = frame.force

    def on_state(self, state: State, neighbors) -> None:
        """Compute and store the diagnostics of a frame."""
        given: dict[str, Any] = self._given | ({} if state.box is None else {"box": state.box})
        if state.gates is not None:
            given["region"] = replace(given["region"], gates=state.gates)
        dynamics = state.dynamics
        force = dynamics.force if self._force is None else self._force
        values = self._diagnose(dynamics.position, dynamics.velocity, force, neighbors, given)
        values = {name: np.asarray(value, float) for name, value in values.items()}
        values["area"] = values["area"] * self._atomic_volume
        self._frames.append(Blend(step=state.step, time_ps=state.time_ps, **values))

    @property
    def log(self) -> Blend:
        """All frames, one array per field."""
        return Blend(*(np.asarray(column) for column in zip(*self._frames)))

    def summary(self) -> dict:
        """Statistics over the run, in types that JSON can store.

        `n_frames`: number of frames. `share` and `blended`: mean, minimum and
        maximum. `gate_force` and `thermal_force`, eV/Å: root mean squares of
        F_gate and of the total force over blended atoms and frames;
        `gate_over_thermal` is their ratio. `power_rms`, eV/ps. With
        `atomic_volume` also `area` (mean, minimum and maximum, Å^2), and
        `flux_mean` and `flux_rms`, eV/ps/Å^2: power over area. With `costs` also
        `s_max`, the upper bound of the speed-up over the first expert alone,
        c_0 / mean(sum_e share_e c_e).

        Raises:
            ValueError: no frame was reported.
        """
        if not self._frames:
            raise ValueError(
                "summary needs at least one frame, got none. "
                "Pass this object to `simulate.run` in `reporters`."
            )
        log = self.log
        has_blend = np.isfinite(log.force)
        summary = {
            "n_frames": len(self._frames),
            "share": [_mean_min_max(column) for column in log.share.T],
            "blended": _mean_min_max(log.blended),
        }
        if has_blend.any():
            summary |= {
                "gate_force": _rms(log.gate_force[has_blend]),
                "thermal_force": _rms(log.force[has_blend]),
                "gate_over_thermal": _rms(log.gate_force[has_blend]) / _rms(log.force[has_blend]),
                "largest_gate_force": float(np.max(log.largest_gate_force)),
                "power_rms": _rms(log.power[has_blend]),
            }
        if has_blend.any() and np.isfinite(self._atomic_volume):
            flux = log.power[has_blend] / log.area[has_blend]
            summary |= {
                "area": _mean_min_max(log.area[has_blend]),
                "flux_mean": float(np.mean(flux)),
                "flux_rms": _rms(flux),
            }
        if self._costs is not None:
            summary["s_max"] = float(self._costs[0] / np.mean(log.share @ self._costs))
        return summary


def _diagnostics(parts: Callable, position, velocity, force, neighbors, given) -> dict[str, Array]:
    """The fields of `Blend` after `time_ps`; `area` is divided by the volume of an atom."""
    # The vector-Jacobian product of the gate alone: energies are constants.
    gate, gate_vjp = jax.vjp(lambda R: parts(R, neighbors, **given).gate, position)
    energy = parts(position, neighbors, **given).energy
    (slope,) = gate_vjp(energy)  # [n_atoms, 3], -F_gate
    (normal,) = gate_vjp(jnp.zeros_like(gate).at[:, 0].set(1.0))
    blended = jnp.max(gate, axis=1) < 1.0
    count = jnp.sum(blended)

    def rms(vectors):
        square = jnp.sum(jnp.where(blended[:, None], vectors**2, 0.0))
        return jnp.sqrt(square / jnp.where(count > 0, count, jnp.nan))

    return {
        "share": jnp.mean(gate > 0, axis=0),
        "blended": jnp.mean(blended),
        "gate_force": rms(slope),
        "force": rms(force),
        "largest_gate_force": jnp.max(jnp.linalg.norm(slope, axis=1)),
        "power": jnp.sum(slope * velocity) * PS,
        "area": jnp.sum(jnp.where(blended, jnp.linalg.norm(normal, axis=1), 0.0)),
    }


def _rms(values) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _mean_min_max(values) -> list[float]:
    return [float(f(values)) for f in (np.mean, np.min, np.max)]
