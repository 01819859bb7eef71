"""Deltas: low-rank corrections of any parameter tree, with one set per owner.

An owner has its own parameters in addition to shared ones: an agent, a role, a task. Its kernel is

    K + (alpha / r) L R,   L (in, r), R (r, out)

Deltas work on any pytree of parameters, of `flax.linen`, `flax.nnx` or other libraries. This subpackage knows neither
agents nor environments.

| function                           | result |
|---|---|
| `make_spec(tree, target, rank)`    | the parameters with a delta, and their ranks; `print` shows a table |
| `init(key, spec, n)`               | fresh deltas of n owners, leaves [N, ...] |
| `merge(tree, own)`                 | full parameters of one owner |
| `merge_all(tree, deltas)`          | full parameters of all owners, and their `in_axes` |
| `factored(module, own)`            | `module.apply` of a `flax.linen` module, without merging |
| `difference(tree_a, tree_b, spec)` | the deltas from one tree to another |
| `resize(deltas, spec, key)`        | the deltas of all owners with other ranks and alphas |
| `per_owner(transform)`             | an optax transformation with one state and one clip per owner |
| `save(path, deltas)`, `load(path)` | a folder with a PEFT adapter folder per owner |

Identities, which tests hold: fresh deltas change nothing; merged and factored application agree up to rounding; a
full-rank delta is the difference of two trees; deltas on a frozen tree give it no gradient; an owner that does not
move keeps its parameters and its optimiser state to the bit.

Examples:
    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from lorasa_jax import deltas
    >>> net, x = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(4)]), jnp.ones((2, 8))
    >>> variables = net.init(jax.random.key(0), x)
    >>> spec = deltas.make_spec(variables, "*kernel", rank=2)
    >>> print(spec)
    path                    view  shape    in x out  rank  count
    params/layers_0/kernel  io    [8, 32]  8 x 32    2        80
    params/layers_2/kernel  io    [32, 4]  32 x 4    2        72
    total per owner                                          152
    >>> team = deltas.init(jax.random.key(1), spec, n=3)
    >>> bool((deltas.factored(net, team[0])(variables, x) == net.apply(variables, x)).all())
    True
"""

from lorasa_jax.deltas.algebra import Deltas, difference, init, merge, merge_all, resize
from lorasa_jax.deltas.files import load, save
from lorasa_jax.deltas.layers import factored
from lorasa_jax.deltas.owners import per_owner
from lorasa_jax.deltas.spec import Spec, Target, make_spec

__all__ = [
    "Deltas",
    "Spec",
    "Target",
    "difference",
    "factored",
    "init",
    "load",
    "make_spec",
    "merge",
    "merge_all",
    "per_owner",
    "resize",
    "save",
]
