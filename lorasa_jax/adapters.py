"""Adapters: how they are made, and what can be done with those of a trained team."""

from lorasa_jax.sharing.variants import Adapter, generated, low_rank, masked, own_layers
from lorasa_jax.storage.adapter_files import TeamAdapters, attach, load, save
from lorasa_jax.storage.teams import merge, resize, unmerge

__all__ = [
    "Adapter",
    "TeamAdapters",
    "attach",
    "generated",
    "load",
    "low_rank",
    "masked",
    "merge",
    "own_layers",
    "resize",
    "save",
    "unmerge",
]
