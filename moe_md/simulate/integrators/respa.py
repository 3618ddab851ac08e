"""Multiple time steps: r-RESPA around another integrator.

Between two evaluations of the expensive expert a cheap inner potential gives the
forces. What the expensive expert adds is applied as an impulse at every n-th
step: half kicks of outer and inner steps coincide there, so a step is that of the
wrapped integrator under the force `inner + n outer` at every n-th step and
`inner` at the others. It stays symmetric in time, and symplectic.

Source: Tuckerman, Berne, Martyna, J. Chem. Phys. 97, 1990 (1992).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from moe_md.checks import check_count
from moe_md.simulate.integrators.base import Evaluation, Integrator
from moe_md.simulate.integrators.frozen import Frozen
from moe_md.simulate.integrators.langevin import Langevin
from moe_md.simulate.integrators.nve import NVE


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Respa:
    """An integrator whose outer forces are evaluated at every `outer_every`-th step."""

    integrator: Any  # of `nve` or `langevin`, or `freeze` of these
    inner_energy: Callable = field(metadata={"static": True})  # (R, neighbor, **given) -> eV
    # (R, neighbor, **given) -> [2] eV, the inner energy and the rest
    inner_outer_split: Callable = field(metadata={"static": True})
    outer_every: int = field(metadata={"static": True})

    changes_box = False

    def __getattr__(self, name: str) -> Any:
        """What is not about forces is the wrapped integrator's."""
        if name.startswith("__") or name == "integrator":
            raise AttributeError(name)
        return getattr(self.integrator, name)

    def at_chunk_start(self, position: Float[Array | np.ndarray, "atoms 3"], neighbors, **given) -> "Respa":
        """The wrapper of the integrator for the next chunk."""
        integrator = self.integrator.at_chunk_start(position, neighbors, **given)
        return Respa(integrator, self.inner_energy, self.inner_outer_split, self.outer_every)

    def evaluate(
        self,
        energy_fn: Callable,
        step: Int[Array, ""] | int,
        position: Float[Array | np.ndarray, "atoms 3"],
        *,
        neighbor,
        **given,
    ) -> Evaluation:
        """Energy, force, and the force that is applied at this step."""
        del energy_fn

        def outer(R):
            (inner, rest), pull = jax.vjp(lambda R: self.inner_outer_split(R, neighbor, **given), R)
            (of_inner,), (of_rest,) = (pull(jnp.asarray(one, R.dtype)) for one in ([1.0, 0.0], [0.0, 1.0]))
            return inner + rest, -(of_inner + of_rest), -(of_inner + self.outer_every * of_rest)

        def inner(R):
            energy, gradient = jax.value_and_grad(lambda R: self.inner_energy(R, neighbor, **given))(R)
            return energy, -gradient, -gradient

        return Evaluation(*jax.lax.cond(step % self.outer_every == 0, outer, inner, position), None)


def respa(integrator: Integrator, neighbor_fn, every: int) -> Integrator:
    """The integrator with the expensive expert evaluated at every `every`-th step only.

    Energies and forces in frames are those of the full mixture; frames fall on
    steps at which all forces are evaluated. An inner potential that knows the
    stiffness of every bond allows 3 to 4 fs between evaluations. An outer step
    near a half or a third of a period that it does not know is unstable.

    Args:
        integrator: from `nve` or `langevin`, or `freeze` of these.
        neighbor_fn: from `mixture_neighbor_list(..., inner_potential=)`.
        every: at least 1; 1 returns the integrator itself.

    Raises:
        ValueError: the integrator is another one, the mixture has no inner
            potential, or `every` is out of range.
    """
    check_count("every", every, 1)
    moving = integrator.integrator if isinstance(integrator, Frozen) else integrator
    if not isinstance(moving, (NVE, Langevin)):
        raise ValueError(f"integrator must be from nve or langevin, got {type(moving).__name__}.")
    if every == 1:
        return integrator
    if getattr(neighbor_fn, "inner_outer_split", None) is None:
        raise ValueError(
            f"neighbor_fn must be of mixture_neighbor_list(..., inner_potential=...) where every = {every}."
        )
    wrapped = Respa(integrator, neighbor_fn.inner_energy, neighbor_fn.inner_outer_split, every)
    return cast(Integrator, wrapped)  # by `__getattr__`
