"""moe_md: expensive and cheap potentials as one differentiable energy.

Public names are imported at their first use (PEP 562): `import moe_md` loads neither jax nor ASE.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_md import derivatives as derivatives
    from moe_md import distributed as distributed
    from moe_md import experts as experts
    from moe_md import gradients as gradients
    from moe_md import regions as regions
    from moe_md import simulate as simulate
    from moe_md import units as units
    from moe_md.checkpoint import Checkpoint as Checkpoint
    from moe_md.checkpoint import load as load
    from moe_md.checkpoint import models as models
    from moe_md.checkpoint import save as save
    from moe_md.compilation_cache import use_compilation_cache as use_compilation_cache
    from moe_md.compiler import compiler_options as compiler_options
    from moe_md.experts import Potential as Potential
    from moe_md.mixture import mixture_neighbor_list as mixture_neighbor_list
    from moe_md.training.cotrain import cotrain as cotrain

# The module that defines each public name; None if the name is a module.
_MODULES = {
    "Checkpoint": "checkpoint",
    "Potential": "experts",
    "compiler_options": "compiler",
    "cotrain": "training.cotrain",
    "derivatives": None,
    "distributed": None,
    "experts": None,
    "gradients": None,
    "load": "checkpoint",
    "mixture_neighbor_list": "mixture",
    "models": "checkpoint",
    "regions": None,
    "save": "checkpoint",
    "simulate": None,
    "units": None,
    "use_compilation_cache": "compilation_cache",
}

__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        from moe_md.renamed import missing_attribute

        raise missing_attribute(__name__, name)
    source = _MODULES[name]
    module = importlib.import_module(f"moe_md.{source or name}")
    value = module if source is None else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
