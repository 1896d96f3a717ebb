"""Recipes of the README: parts of a model, and two models at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

import gen_optax
from gen_optax.flax_training import value_grad_and_closure

X = np.random.default_rng(0).normal(size=(32, 5))
Y = np.sin(X @ np.arange(1.0, 6.0)[:, None])


class Adapted(nnx.Module):
  """A layer with a low-rank adapter, as LoRA trains it, and a last one."""

  def __init__(self, rngs):
    wide = dict(param_dtype=jnp.float64, rngs=rngs)
    self.first = nnx.LoRALinear(
      5, 16, lora_rank=2, lora_param_dtype=jnp.float64, **wide
    )
    self.last = nnx.Linear(16, 1, **wide)

  def __call__(self, x):
    return self.last(jnp.tanh(self.first(x)))


def mse(model, x, y):
  return jnp.mean((model(x) - y) ** 2)


def is_bias(path, value):
  del value
  return path[-1] == "bias"


SUBSETS = {"LoRA": nnx.LoRAParam, "BitFit": is_bias}


def adapted():
  model = Adapted(nnx.Rngs(0))
  # Half of an adapter is zero at first, and the other half without a slope.
  adapter = model.first.lora.lora_b
  adapter[...] = np.random.default_rng(1).normal(size=adapter.shape) / 9
  return model


def train_by_wrt(subset, steps):
  model = adapted()
  optimizer = nnx.Optimizer(model, gen_optax.gen_adamw(), wrt=subset)

  @nnx.jit
  def step(model, optimizer):
    value, grad, value_fn = value_grad_and_closure(mse, model, X, Y, wrt=subset)
    optimizer.update(model, grad, value=value, grad=grad, value_fn=value_fn)
    return value

  values = [step(model, optimizer) for _ in range(steps)]
  return values, nnx.as_pure(nnx.state(model, nnx.Param))


def train_by_partition(subset, steps, freeze):
  graphdef, params, rest = nnx.split(adapted(), nnx.Param, ...)
  trained = nnx.filterlib.to_predicate(subset)
  labels = jax.tree.map_with_path(
    lambda path, leaf: "train" if trained(_names(path), leaf) else "freeze",
    params,
    is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
  )
  params, rest = nnx.as_pure(params), nnx.as_pure(rest)
  optimizer = gen_optax.generalized_newton(
    optax.partition({"train": optax.adamw(1.0), "freeze": freeze}, labels)
  )
  step = gen_optax.make_step(
    lambda p: mse(nnx.merge(graphdef, p, rest), X, Y), optimizer
  )
  state, values = optimizer.init(params), []
  for _ in range(steps):
    params, state, value, *_ = step(params, state)
    values.append(value)
  return values, params


def _names(path):
  return tuple(entry.key for entry in path)


@pytest.mark.parametrize("name", SUBSETS)
def test_wrt_and_partition_train_the_same_part(x64, name):
  """GeN fits along the trained part alone, either way."""
  steps, subset = 12, SUBSETS[name]
  values, params = train_by_wrt(subset, steps)
  again, also = train_by_partition(subset, steps, optax.set_to_zero())
  assert values[-1] < 0.9 * values[0]
  np.testing.assert_allclose(values, again, rtol=1e-9)
  flat = lambda tree: jax.tree.leaves(nnx.to_pure_dict(tree))
  start = flat(nnx.as_pure(nnx.state(adapted(), nnx.Param)))
  moved = 0
  for a, b, old in zip(flat(params), flat(also), start, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    moved += bool(jnp.any(a != old))
  assert 0 < moved < len(start)


def dense(key, *sizes):
  keys = jax.random.split(key, len(sizes) - 1)
  return [
    (jax.random.normal(key, (a, b)) / a**0.5, jnp.zeros(b))
    for key, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
  ]


def network(params, x):
  for w, b in params[:-1]:
    x = jnp.tanh(x @ w + b)
  w, b = params[-1]
  return x @ w + b


def test_a_gan_on_digits():
  """Two networks, two closures: each over the other as it is now."""
  images = jnp.asarray(load_digits().data[:512], jnp.float32) / 8 - 1

  def generate(params, noise):
    return jnp.tanh(network(params, noise))

  def critic_loss(critic, generator, real, noise):
    fake = network(critic, generate(generator, noise))
    return jnp.mean(
      jax.nn.softplus(-network(critic, real)) + jax.nn.softplus(fake)
    )

  def generator_loss(generator, critic, noise):
    fake = network(critic, generate(generator, noise))
    return jnp.mean(jax.nn.softplus(-fake))

  keys = jax.random.split(jax.random.key(0), 3)
  generator, critic = dense(keys[0], 8, 32, 64), dense(keys[1], 64, 32, 1)
  optimizers = [gen_optax.gen_adam(b1=0.5), gen_optax.gen_adam(b1=0.5)]
  critic_step = gen_optax.make_step(critic_loss, optimizers[0])
  generator_step = gen_optax.make_step(generator_loss, optimizers[1])
  critic_state = optimizers[0].init(critic)
  generator_state = optimizers[1].init(generator)

  def distance(generator):
    """Of the mean image to that of the data."""
    fake = generate(generator, jax.random.normal(keys[2], (512, 8)))
    return jnp.linalg.norm(fake.mean(0) - images.mean(0))

  before = distance(generator)
  for key in jax.random.split(keys[2], 200):
    noise_key, batch_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (64, 8))
    real = jax.random.choice(batch_key, images, (64,), False)
    critic, critic_state, *_ = critic_step(
      critic, critic_state, generator, real, noise
    )
    generator, generator_state, *_ = generator_step(
      generator, generator_state, critic, noise
    )
  assert distance(generator) < 0.5 * before


def test_actor_and_critic():
  """A corridor of eight rooms with the reward behind the last.

  The critic's target and the actor's advantage are arguments of their losses,
  computed before the step, so that no probe moves them.
  """
  rooms, discount, count = 8, 0.9, 128
  values_of, policy_of = (lambda w: lambda s: w[s] for _ in range(2))

  def walk(actor, key):
    """Transitions from random rooms: room, move, reward, next room."""
    room_key, move_key = jax.random.split(key)
    room = jax.random.randint(room_key, (count,), 0, rooms)
    right = jax.random.categorical(move_key, policy_of(actor)(room))
    after = jnp.clip(room + 2 * right - 1, 0, rooms - 1)
    return room, right, ((room == rooms - 1) & (right == 1)) * 1.0, after

  def critic_loss(critic, room, target):
    return jnp.mean((values_of(critic)(room) - target) ** 2)

  def actor_loss(actor, room, right, advantage, old):
    """The clipped surrogate, which is bounded along every line."""
    now = jax.nn.log_softmax(policy_of(actor)(room))
    ratio = jnp.exp(jnp.take_along_axis(now - old, right[:, None], 1)[:, 0])
    clipped = jnp.clip(ratio, 0.8, 1.2)
    return -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))

  critic, actor = jnp.zeros(rooms), jnp.zeros((rooms, 2))
  optimizers = gen_optax.gen_sgd(), gen_optax.gen_sgd()
  critic_step = gen_optax.make_step(critic_loss, optimizers[0])
  actor_step = gen_optax.make_step(actor_loss, optimizers[1])
  critic_state, actor_state = (
    optimizers[0].init(critic),
    optimizers[1].init(actor),
  )
  for key in jax.random.split(jax.random.key(0), 150):
    room, right, reward, after = walk(actor, key)
    value = values_of(critic)
    target = reward + discount * value(after) * (reward == 0)
    advantage = target - value(room)
    old = jax.nn.log_softmax(policy_of(actor)(room))
    critic, critic_state, *_ = critic_step(critic, critic_state, room, target)
    actor, actor_state, *_ = actor_step(
      actor, actor_state, room, right, advantage, old
    )
  chance = jax.nn.softmax(actor)[:, 1]
  assert chance.min() > 0.9
