"""What a region that moves does to a run: its share, its force, the energy that passes through its blend.

    F_gate = - sum_ie E_i^e dw_ie/dR     part of the force
    P      = sum_ie E_i^e dw_ie/dt       = - F_gate . v, what weights that change do to the energy
    A      = V sum_i |dw_i0/dR_i|        over atoms i that are shared, V the volume of an atom: the
                                         mean area, in matter, of the surfaces of equal weight

On an atom that is shared, and that no sphere follows, |F_gate| is
|E_i^H - E_i^L| |grad w_i|: agreement between the experts keeps it small.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md import units
from moe_md.checks import check_positive
from moe_md.simulate.run import Frame, State

PS = 1000.0 * units.fs


class Blend(NamedTuple):
    """One moment of a run; or, as a log, arrays of many."""

    step: int | np.ndarray
    time_ps: float | np.ndarray
    share: np.ndarray  # [n_experts], of the atoms, with weight on each
    # [] each, of one moment
    blended: np.ndarray  # share of atoms with weight on more than one
    gate_force: np.ndarray  # eV/Å, root mean square |F_gate| over shared atoms; NaN where there are none
    force: np.ndarray  # eV/Å, the same of the whole force
    largest_gate_force: np.ndarray  # eV/Å, on any atom, those that are followed included
    power: np.ndarray  # eV/ps
    area: np.ndarray  # Å^2, NaN where the volume of an atom is not known


class BlendWatch:
    """Looks at the blend at each frame: a reporter of `simulate.run`.

    A look costs about one step.

    Args:
        neighbor_fn: of the mixture that runs.
        atomic_volume: Å^3, of an atom of the bulk, a^3 / 4 in an fcc crystal;
            for the area, and so the flux.
        costs: seconds per atom of each expert, or numbers in their proportion;
            for `s_max`.
        params, region: what the run is given; default the builder's. Those
            of a run with `reassign_steps` must be given.

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
    ):
        if atomic_volume is not None:
            check_positive("atomic_volume", atomic_volume)
        for cost in costs or ():
            check_positive("costs", cost)
        self._look = jax.jit(_looker(neighbor_fn.parts))
        self._given: dict[str, Any] = {
            k: v for k, v in (("params", params), ("region", region)) if v is not None
        }
        self._atomic_volume = np.nan if atomic_volume is None else float(atomic_volume)
        self._costs = None if costs is None else np.asarray(costs, float)
        self._force = None
        self._rows: list[Blend] = []

    def __call__(self, frame: Frame) -> None:
        """Keep the force: with multiple time steps that of the state is an impulse."""
        self._force = frame.force

    def on_state(self, state: State, neighbors) -> None:
        """Look."""
        given: dict[str, Any] = self._given | ({} if state.box is None else {"box": state.box})
        if state.weights is not None:
            given["region"] = replace(given["region"], weights=state.weights)
        dynamics = state.dynamics
        force = dynamics.force if self._force is None else self._force
        seen = self._look(dynamics.position, dynamics.velocity, force, neighbors, given)
        seen = {name: np.asarray(value, float) for name, value in seen.items()}
        seen["area"] = seen["area"] * self._atomic_volume
        self._rows.append(Blend(step=state.step, time_ps=state.time_ps, **seen))

    @property
    def log(self) -> Blend:
        """All looks, one array per field."""
        return Blend(*(np.asarray(column) for column in zip(*self._rows)))

    def summary(self) -> dict:
        """Of the whole run, fit for JSON.

        `share` and `blended`: mean, least and most. `gate_force` and
        `thermal_force`, eV/Å: root mean squares over shared atoms and looks,
        `gate_over_thermal` their ratio. `power_rms`, eV/ps. With the volume of
        an atom, `area` (mean, least and most), `flux_mean` and `flux_rms`,
        eV/ps/Å^2: the power over the area. With costs, `s_max`: the most that
        the mixture can gain over the first expert alone,
        c_0 / mean(sum_e share_e c_e).

        Raises:
            ValueError: there was no look.
        """
        if not self._rows:
            raise ValueError("reporters must hold this one while something runs: it has seen no frame.")
        log = self.log
        shared = np.isfinite(log.force)
        told = {
            "looks": len(self._rows),
            "share": [_mean_least_most(column) for column in log.share.T],
            "blended": _mean_least_most(log.blended),
        }
        if shared.any():
            told |= {
                "gate_force": _rms(log.gate_force[shared]),
                "thermal_force": _rms(log.force[shared]),
                "gate_over_thermal": _rms(log.gate_force[shared]) / _rms(log.force[shared]),
                "largest_gate_force": float(np.max(log.largest_gate_force)),
                "power_rms": _rms(log.power[shared]),
            }
        if shared.any() and np.isfinite(self._atomic_volume):
            flux = log.power[shared] / log.area[shared]
            told |= {
                "area": _mean_least_most(log.area[shared]),
                "flux_mean": float(np.mean(flux)),
                "flux_rms": _rms(flux),
            }
        if self._costs is not None:
            told["s_max"] = float(self._costs[0] / np.mean(log.share @ self._costs))
        return told


def _looker(parts: Callable) -> Callable:
    def look(position, velocity, force, neighbors, given) -> dict[str, Array]:
        # A walk back through the weights alone: what the experts say is held.
        weight, pull = jax.vjp(lambda R: parts(R, neighbors, **given).gate, position)
        energy = parts(position, neighbors, **given).energy
        (slope,) = pull(energy)
        (normal,) = pull(jnp.zeros_like(weight).at[:, 0].set(1.0))
        shared = jnp.max(weight, axis=1) < 1.0
        count = jnp.sum(shared)

        def rms(vectors):
            return jnp.sqrt(
                jnp.sum(jnp.where(shared[:, None], vectors**2, 0.0)) / jnp.where(count > 0, count, jnp.nan)
            )

        return {
            "share": jnp.mean(weight > 0, axis=0),
            "blended": jnp.mean(shared),
            "gate_force": rms(slope),
            "force": rms(force),
            "largest_gate_force": jnp.max(jnp.linalg.norm(slope, axis=1)),
            "power": jnp.sum(slope * velocity) * PS,
            "area": jnp.sum(jnp.where(shared, jnp.linalg.norm(normal, axis=1), 0.0)),
        }

    return look


def _rms(values) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _mean_least_most(values) -> list[float]:
    return [float(f(values)) for f in (np.mean, np.min, np.max)]
