"""PEFT itself reads what is saved: a torch network with an owner's folder computes what the adapted one computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_params, small_config

from lorasa_jax import adapters, deltas
from lorasa_jax.core.networks import Network
from lorasa_jax.envs.toy import make_toy
from lorasa_jax.learning.system import make_system

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
peft = pytest.importorskip("peft", reason="needs the extra `peft`")
torch = pytest.importorskip("torch", reason="needs the extra `peft`")

KEY = jax.random.key(0)


def twin(tree):
    """A torch network of the `Linear` and `Embedding` modules of a tree, with its weights."""
    net = torch.nn.Module()
    for name, parts in tree.items():
        if "embedding" in parts:
            net.add_module(name, torch.nn.Embedding.from_pretrained(torch.tensor(np.asarray(parts["embedding"]))))
        elif "kernel" in parts:
            kernel = torch.tensor(np.asarray(parts["kernel"]))
            kernel = kernel.reshape(-1, parts["bias"].size)
            linear = torch.nn.Linear(*kernel.shape)
            linear.weight.data, linear.bias.data = (
                kernel.T.contiguous(),
                torch.tensor(np.asarray(parts["bias"])).ravel(),
            )
            net.add_module(name, linear)
    return net


def test_an_owner_of_any_deltas_plays_alike_in_torch(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {
        "Embed_0": {"embedding": (9, 6)},
        "Dense_0": {"kernel": (6, 16), "bias": (16,)},
        "query": {"kernel": (16, 2, 5), "bias": (2, 5)},
        "Dense_1": {"kernel": (10, 3), "bias": (3,)},
    }
    is_shape = lambda value: isinstance(value, tuple)  # noqa: E731
    tree = jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), shapes, is_leaf=is_shape)
    spec = deltas.make_spec(
        {"params": tree}, ["*kernel", "*embedding"], 2, 3.0, rank_pattern={"*Dense_1*": 8, "*query*": 1}
    )
    fresh = deltas.init(KEY, spec, 3)
    team = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), fresh)
    folder = deltas.save(tmp_path / "team", team)
    x = np.arange(9)

    def forward(net, tokens):
        return net.Dense_1(torch.tanh(net.query(torch.tanh(net.Dense_0(net.Embed_0(tokens))))))

    net = peft.PeftModel.from_pretrained(twin(tree), str(folder / "owner_0"), adapter_name="agent_0")
    net.load_adapter(str(folder / "owner_2"), adapter_name="agent_2")
    for owner in (0, 2):
        net.set_adapter(f"agent_{owner}")
        full = deltas.merge({"params": tree}, team[owner])["params"]
        with torch.no_grad():
            found, expected = forward(net.base_model.model, torch.tensor(x)), forward(twin(full), torch.tensor(x))
        h = full["Embed_0"]["embedding"][x]
        for name in ("Dense_0", "query", "Dense_1"):
            h = h @ full[name]["kernel"].reshape(h.shape[1], -1) + full[name]["bias"].ravel()
            h = h if name == "Dense_1" else jnp.tanh(h)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(found, h, rtol=1e-5, atol=1e-5)


def test_what_peft_cannot_apply_is_as_the_documents_say(tmp_path):
    stack = deltas.init(KEY, deltas.make_spec({"a": {"kernel": jnp.zeros((2, 4, 5))}}, views={"a/kernel": "bio"}), 1)
    folder = deltas.save(tmp_path / "stack", stack)
    backbone = {"a": {"kernel": jnp.ones((4, 5)), "bias": jnp.zeros(5)}}
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(twin(backbone), str(folder / "owner_0"))
    biased = deltas.init(KEY, deltas.make_spec(backbone, "*", rank=2), 1)
    biased = jax.tree.map(jnp.ones_like, biased)
    folder = deltas.save(tmp_path / "biased", biased)
    net = peft.PeftModel.from_pretrained(twin(backbone), str(folder / "owner_0"))
    with torch.no_grad():
        found = net.base_model.model.a(torch.ones(4))
    full = deltas.merge(backbone, biased[0])
    np.testing.assert_allclose(found, full["a"]["kernel"].sum(axis=0), atol=1e-5)
    assert full["a"]["bias"].all()


def test_a_team_plays_alike_in_torch(tmp_path):
    """The built-in network without norms: each agent's logits from its own folder on the shared backbone."""
    actor = {"hidden": 8, "layers": 2, "layers_after": 0, "recurrent": False, "input_norm": False, "layer_norm": False}
    config = small_config(sharing="lorasa", task="probe_policy", alpha=1.0, actor=tuple(actor.items()))
    system = make_system(config, make_toy("probe_policy", 3), adapting=True)
    params = random_params(system.actor)
    folder = adapters.save(tmp_path / "team", params, system)
    network = Network(system.config.actor, system.env.spec.n_actions, head_gain=1.0, n_ids=3)
    activation = getattr(torch, system.config.actor.activation)
    obs = np.random.default_rng(1).normal(size=(5, 3)).astype("float32")

    def forward(net, agent):
        with torch.no_grad():
            x = net.fc1(torch.tensor(obs)) + net.id(torch.tensor(agent))
            return net.head(activation(net.fc2(activation(x))))

    for agent, tree in enumerate(adapters.merge(params, system)):
        inputs = jnp.zeros((5, 0)), jnp.asarray(obs)[None], jnp.zeros((1, 5), bool), jnp.asarray(agent)
        _, expected = network.apply({"params": tree}, *inputs)
        backbone = twin(jax.tree.map(lambda leaf: leaf[0], params.shared))
        assert not np.allclose(forward(backbone, agent), expected[0], atol=1e-2)
        net = peft.PeftModel.from_pretrained(backbone, str(folder / f"owner_{agent}"))
        np.testing.assert_allclose(forward(net.base_model.model, agent), expected[0], atol=1e-5)
