"""Modules of jax-md, each imported at its first use.

Importing jax-md takes 2.7 s and starts a jax backend, as `jax_md.rigid_body` computes on import. After that
`jax.distributed.initialize()` fails and forked processes hang. Modules of this package therefore write
`from moe_md import lazy_jax_md as jax_md`, and use `jax_md.simulate.nve` inside their functions only.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax_md import minimize as minimize
    from jax_md import simulate as simulate
    from jax_md import space as space
    from jax_md.nn import nequip as nequip

# Package of each module, and its name there.
_LOCATION = {
    "minimize": ("jax_md", "minimize"),
    "nequip": ("jax_md.nn", "nequip"),
    "simulate": ("jax_md", "simulate"),
    "space": ("jax_md", "space"),
}


def __getattr__(name: str):
    if name not in _LOCATION:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import jax

    package, attribute = _LOCATION[name]
    with jax.ensure_compile_time_eval():  # arrays that jax-md computes on import must not be tracers
        globals()[name] = module = getattr(importlib.import_module(package), attribute)
    return module
