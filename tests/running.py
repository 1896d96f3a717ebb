"""Runs an optax optimizer on a loss, compiled once, and reports each step."""

import functools
import re
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_optax import problems
from gen_optax.gen.fit import LineFit

SETTINGS = hypothesis.settings(
  deadline=None,
  max_examples=40,
  derandomize=True,
  suppress_health_check=list(hypothesis.HealthCheck),
)

# Built with learning rate 1, as GeN wants them.
BASES = {
  "sgd": lambda: optax.sgd(1.0),
  "momentum": lambda: optax.sgd(1.0, momentum=0.9),
  "adam": lambda: optax.adam(1.0),
  "adamw": lambda: optax.adamw(1.0),
  "lion": lambda: optax.lion(1.0),
  "rmsprop": lambda: optax.rmsprop(1.0),
}

ROSENBROCK_START = np.array([-1.2, 1.0])


class Run(NamedTuple):
  """What every step left behind, stacked over the steps."""

  params: Any
  rate: jax.Array
  loss: jax.Array
  info: Any
  state: Any


def gen_state(state):
  for name in ("ScaleByGenState", "ScaleByGenPaperState"):
    found = optax.tree.get(state, name)
    if found is not None:
      return found
  raise KeyError("no GeN stage in the state")


def step(tx, value_fn, params, state, **extra_args):
  """One step with everything that a stage may read."""
  value, grad = jax.value_and_grad(value_fn)(params)
  arguments = dict(value=value, grad=grad, value_fn=value_fn) | extra_args
  updates, state = tx.update(grad, state, params, **arguments)
  return optax.apply_updates(params, updates), state, value


def train(tx, value_fn, params, steps):
  """Losses before each step, and what is left; all from one compiled scan."""
  tx = optax.with_extra_args_support(tx)

  def body(carry, _):
    params, state, value = step(tx, value_fn, *carry)
    return (params, state), value

  run = lambda carry: jax.lax.scan(body, carry, length=steps)
  (params, state), losses = jax.jit(run)((params, tx.init(params)))
  return losses, params, state


def left_loops(step, *args):
  """Arrays of a compiled step that XLA has moved out of a loop's body.

  It does so with what does not depend on the loop's carry, and then computes it
  on every step, whether the loop makes a trip or not.
  """
  text = jax.jit(step).lower(*args).compile().as_text()
  entry = re.search(r"^ENTRY .*?^}", text, re.M | re.S)[0]
  assert " while(" in entry
  arrays = re.findall(r"^.* = \w+\[\d.*$", entry, re.M)
  return [line for line in arrays if "/while/body/" in line]


def run(tx, loss, start, steps):
  """Scans `steps` steps on `loss(params, t)`; `state` is the last one."""

  def body(carry, t):
    params, state = carry
    params, state, value = step(tx, lambda p: loss(p, t), params, state)
    gen = gen_state(state)
    return (params, state), (params, gen.learning_rate, value, gen.info)

  (_, state), history = jax.lax.scan(
    body, (start, tx.init(start)), jnp.arange(steps)
  )
  return Run(*history, state)


@functools.cache
def static(name):
  """A test function as a loss that is the same in every step."""
  fn = getattr(problems, name)().fn
  return lambda w, t: fn(w)


def alternating(w, t):
  """The two quadratics of goldens G4 and G6, in turn."""
  even = t % 2 == 0
  centre = jnp.where(even, jnp.array([1.0, 0.5]), jnp.array([-1.0, -0.25]))
  return 0.5 * jnp.sum(jnp.array([1.0, 10.0]) * (w - centre) ** 2)


def faint(w, t):
  """The first of them with a hundredth of the noise."""
  return alternating(w - jnp.where(t % 2 == 0, 0.01, -0.01), 0)


LOSSES = {
  "beale": static("beale"),
  "rosenbrock": static("rosenbrock"),
  "alternating": alternating,
  "faint noise": faint,
}


def fit_of(slope, curvature):
  """What a rule is given of a line."""
  slope, curvature = jnp.asarray(slope), jnp.asarray(curvature)
  optimum = slope / jnp.where(curvature == 0, 1.0, curvature)
  quality, finite = jnp.ones_like(slope), jnp.array(True)
  return LineFit(slope, curvature, optimum, quality, finite)


def assert_finite(tree, case=None):
  """No leaf has an entry that is not finite; names those that have one."""
  bad = [
    jax.tree_util.keystr(path) or "the array itself"
    for path, leaf in jax.tree.leaves_with_path(tree)
    if not np.all(np.isfinite(np.asarray(leaf)))
  ]
  assert not bad, (", ".join(bad), "not finite", case)


def assert_digits(actual, printed, units=1.0):
  """Every number agrees with the printed one to the last digit printed."""
  expected = printed.replace(",", " ").split()
  actual = np.atleast_1d(np.asarray(actual, np.float64))
  assert actual.shape == (len(expected),), (actual, expected)
  for number, text in zip(actual, expected, strict=True):
    mantissa, _, exponent = text.lower().partition("e")
    decimals = len(re.sub(r"^[^.]*\.?", "", mantissa))
    unit = 10.0 ** (int(exponent or 0) - decimals)
    assert abs(number - float(text)) <= units * unit, (number, text)


def logistic(count=512, width=8, seed=0, noise=0.0):
  """Features, labels in {-1, 1} of a logistic model, and its mean loss."""
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(count, width))
  truth = rng.normal(size=width)
  flip = rng.random(count) < noise
  odds = 1 / (1 + np.exp(-features @ truth))
  labels = np.where((rng.random(count) < odds) ^ flip, 1.0, -1.0)

  def loss(w, rows=slice(None), features=features, labels=labels):
    margin = jnp.asarray(labels)[rows] * (jnp.asarray(features)[rows] @ w)
    return jnp.mean(jax.nn.softplus(-margin))

  return features, labels, loss
