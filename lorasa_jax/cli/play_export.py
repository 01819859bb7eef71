"""Play own_number with an exported policy; needs jax, flatbuffers and numpy, and nothing else: play_export.py FILE."""

import sys

import jax.export
import numpy as np

if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    sys.exit("usage: play_export.py FILE: what export.py wrote of a run with --env toy --task own_number")
with open(sys.argv[1], "rb") as file:
    policy = jax.export.deserialize(bytearray(file.read()))
n_envs, (n, hidden) = 8, policy.in_avals[0].shape[1:]
carry = np.zeros((n_envs, n, hidden), np.float32)  # an episode begins
obs = np.tile(np.array([1, 0], np.float32), (n_envs, n, 1))  # all agents see the same
avail = np.ones((n_envs, n, n), bool)
action, logits, carry = policy.call(carry, obs, avail)
reward = np.asarray(action) == np.arange(n)  # agent i is paid for action i
print(f"return {reward.mean():.3f}")
