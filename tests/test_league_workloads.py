"""The league's workloads, without data files.

Networks run on a few drawn arrays of the shape that theirs have.
"""

import jax
import numpy as np
import optax
import pytest

from scripts.league.development import characters
from scripts.league.development.families import FAMILIES as DEVELOPMENT
from scripts.league.families import FAMILIES
from scripts.league.workload import Form, split, variants
from scripts.league.workloads import (
  clicks,
  digit_lines,
  kspace,
  molecules,
  records,
  text,
)


def drawn(*shape):
  return np.random.default_rng(0).random(shape, np.float32)


def labels(count, most):
  return np.random.default_rng(1).integers(0, most, count).astype(np.int32)


def digit_images(count=12):
  return drawn(count, 14, 14), labels(count, 10)


def lines():
  rng = np.random.default_rng(2)
  return split(digit_lines.lines(rng, *digit_images(), 12), 8, 2)


def sentences():
  pair = ("name[the inn], food[thai]", "The inn has Thai food.")
  pair = tuple(records.words(side) for side in pair)
  return split(records.encode([pair] * 8, [pair] * 4), 8, 2)


def coloured(side):
  examples = {"image": drawn(12, side, side, 3), "label": labels(12, 10)}
  return split(examples, 8, 2)


TINY = {
  "clicks": lambda: clicks.load(train=8, held=2),
  "unet": lambda: split(kspace.undersample(drawn(12, 32, 32), 0), 8, 2),
  "resnet": lambda: coloured(32),
  "vit": lambda: coloured(16),
  "conformer": lines,
  "lstm_ctc": lines,
  "gnn": lambda: molecules.load(train=8, held=2),
  "translator": sentences,
  "gpt": lambda: text.parts_of(labels(2000, 30), 2),
  "lstm": lambda: text.parts_of(labels(2000, 30), 2),
  "autoencoder": lambda: split(drawn(12, 784), 8, 2),
}


def test_every_workload_is_tested():
  assert TINY.keys() == FAMILIES.keys() and len(FAMILIES) == 11


def filled(shapes):
  """Parameters of given shapes; compiling an initialisation takes longer."""
  rng = np.random.default_rng(3)

  def fill(path, leaf):
    if leaf.ndim < 2:
      return np.full(leaf.shape, path[-1].key == "scale", leaf.dtype)
    scale = np.prod(leaf.shape[:-1]) ** -0.5
    return scale * rng.normal(size=leaf.shape).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.mark.parametrize("name", TINY)
def test_a_workload_trains(name):
  form = Form(8, FAMILIES[name].form.activation, 1.0, 2, 4)
  workload = FAMILIES[name].build(TINY[name](), form)
  key = jax.random.key(0)
  params, state = jax.eval_shape(workload.init, key)
  params = filled(params)
  # BatchNorm's statistics: means of 0, variances of 1.
  state = jax.tree_util.tree_map_with_path(
    lambda path, x: np.full(x.shape, path[-1].key == "var", x.dtype), state
  )
  assert_trains(workload, params, state)


def assert_trains(workload, params, state):
  """The loss of one batch falls in a few steps, and evaluation is finite."""
  key = jax.random.key(0)
  batch = workload.sample(workload.data, key)
  loss = lambda *args: workload.loss(*args, batch, key)
  gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
  losses = []
  for _ in range(4):
    (value, state), grad = gradient(params, state)
    losses.append(float(value))
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grad)))
    step = optax.tree.scale(-0.01 * losses[0] / norm**2, grad)
    params = optax.tree.add(params, step)
  held = jax.jit(workload.evaluate)(workload.data, params, state)
  assert losses[-1] < losses[0]
  assert np.isfinite([held.validation, held.test]).all()


@pytest.mark.parametrize("name", DEVELOPMENT)
def test_a_development_task_trains(name):
  family = DEVELOPMENT[name]
  text = name == "gru"
  data = characters.parts_of(labels(2000, 30)) if text else family.load(None)
  workload = family.build(data, family.form)
  assert_trains(workload, *workload.init(jax.random.key(1)))


def test_an_initialisation_runs():
  form = Form(4, "tanh", 0.5, 2, 4)
  build = FAMILIES["autoencoder"].build
  halves = build(TINY["autoencoder"](), form)
  whole = build(TINY["autoencoder"](), form._replace(gain=1.0))
  key = jax.random.key(0)
  (half, state), (one, _) = halves.init(key), whole.init(key)
  assert state == {}
  np.testing.assert_allclose(
    half["Mlp_0"]["Dense_0"]["kernel"],
    one["Mlp_0"]["Dense_0"]["kernel"] / 2,
    rtol=1e-6,
  )


def test_only_batch_norm_has_a_state():
  def state_of(name):
    form = Form(8, "relu", 1.0, 2, 4)
    workload = FAMILIES[name].build(TINY[name](), form)
    return jax.eval_shape(workload.init, jax.random.key(0))[1]

  assert set(state_of("resnet")) == {"batch_stats"}
  assert state_of("vit") == {}


@pytest.mark.parametrize("name", FAMILIES)
def test_no_variant_is_what_is_scored(name):
  family = FAMILIES[name]
  forms = variants(family, 4)
  assert forms == variants(family, 4)  # from a fixed seed
  for form in forms:
    assert form.width != family.form.width and form.batch_size >= 4
