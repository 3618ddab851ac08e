"""Modules of jax-md, each imported when it is first used.

Importing jax-md starts a jax backend and takes 2.7 s (`jax_md.rigid_body` computes on import), after which
`jax.distributed.initialize()` fails and forked processes hang. So modules of this package write
`from moe_md import lazy_jax_md as jax_md` and `jax_md.simulate.nve` inside their functions.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax_md import minimize as minimize
    from jax_md import simulate as simulate
    from jax_md import space as space
    from jax_md.nn import nequip as nequip

# Each module: where it is, and its name there.
_HOME = {
    "minimize": ("jax_md", "minimize"),
    "nequip": ("jax_md.nn", "nequip"),
    "simulate": ("jax_md", "simulate"),
    "space": ("jax_md", "space"),
}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import jax

    home, attribute = _HOME[name]
    with jax.ensure_compile_time_eval():  # what jax-md computes on import must be values, also within a trace
        globals()[name] = module = getattr(importlib.import_module(home), attribute)
    return module
