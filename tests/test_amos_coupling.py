"""Which optimizers couple leaves, and which treat them apart."""

import jax
import jax.numpy as jnp
import optax
import pytest

import gen_optax
from gen_optax import amos


def changed(change):
  """A stage: `change` of the gradients' leaves, and of all else by name."""

  def update(updates, state, params=None, **extra_args):
    leaves, treedef = jax.tree.flatten(updates)
    new = change(leaves, params=jax.tree.leaves(params), **extra_args)
    return treedef.unflatten(new), state

  init = lambda params: optax.EmptyState()
  return optax.GradientTransformationExtraArgs(init, update)


def scaled(scale):
  """All leaves times a number that `scale` makes of them and all else."""

  def change(leaves, **rest):
    factor = scale(leaves, **rest)
    return [g * factor for g in leaves]

  return changed(change)


def delayed(calls):
  """All leaves times a norm of so many calls ago."""

  def update(updates, state, params=None):
    del params
    new = jax.tree.map(lambda g: g * state[0], updates)
    return new, (*state[1:], optax.tree.norm(updates))

  init = lambda params: (jnp.ones(()),) * calls
  return optax.GradientTransformation(init, update)


def began():
  """All leaves times a norm of the first parameters."""
  update = lambda updates, norm, params=None: (
    jax.tree.map(lambda g: g * norm, updates),
    norm,
  )
  return optax.GradientTransformation(optax.tree.norm, update)


def trips(leaves, **_):
  """As many halvings as the last leaf needs."""
  size = jnp.max(jnp.abs(leaves[-1]))
  loop = lambda carry: (carry[0] / 2, carry[1] + 1)
  return jax.lax.while_loop(lambda c: c[0] > 1, loop, (size, 0))[1]


def halved(leaves, **_):
  """Each leaf by a loop and a branch of its own."""
  halve = lambda g: jax.lax.while_loop(
    lambda x: jnp.max(jnp.abs(x)) > 1, lambda x: x / 2, g
  )
  big = lambda g: jnp.max(g) > 1
  return [jax.lax.cond(big(g), halve, lambda x: -x, g) for g in leaves]


COUPLING = {
  "global clipping": lambda: optax.chain(
    optax.clip_by_global_norm(1e9), optax.sgd(0.1)
  ),
  "clipped state": lambda: optax.chain(
    optax.trace(0.9), optax.clip_by_global_norm(1.0)
  ),
  "finite gradients": lambda: optax.apply_if_finite(optax.sgd(0.1), 3),
  "implausible": lambda: gen_optax.skip_implausible(optax.sgd(0.1)),
  "psgd": lambda: gen_optax.scale_by_psgd(
    gen_optax.psgd.diagonal(), pairs="whitening"
  ),
  "dog": lambda: optax.contrib.dog(),
  "a rare clipping": lambda: optax.clip_by_global_norm(1e30),
  "clipped vectors": lambda: optax.masked(
    optax.clip_by_global_norm(1.0),
    lambda params: jax.tree.map(lambda x: x.ndim < 2, params),
  ),
  "a sign": lambda: scaled(lambda g, **_: jnp.where(g[-1][0, 0] < 0, 1, 2)),
  "a count": lambda: scaled(lambda g, **_: jnp.argmax(g[-1])),
  "a branch": lambda: scaled(
    lambda g, **_: jax.lax.cond(jnp.any(g[-1] > 9), lambda: 1.0, lambda: 2.0)
  ),
  "trips of a loop": lambda: scaled(trips),
  "no derivative": lambda: scaled(
    lambda g, **_: jax.lax.stop_gradient(jnp.round(g[-1][0, 0]))
  ),
  "parameters": lambda: scaled(lambda g, params, **_: optax.tree.norm(params)),
  "the diagonal": lambda: scaled(
    lambda g, hessian_diagonal, **_: jnp.max(hessian_diagonal[-1])
  ),
  "the gradient by its name": lambda: scaled(
    lambda g, grad, **_: optax.tree.norm(grad)
  ),
  "an old gradient": lambda: delayed(6),
  "where it began": lambda: began(),
  "the first leaf alone": lambda: changed(
    lambda g, **_: [g[0] + jnp.sum(g[-1]), *g[1:]]
  ),
  "the last leaf alone": lambda: changed(
    lambda g, **_: [*g[:-1], g[-1] + jnp.sum(g[0])]
  ),
}
READING = {
  "GeN": lambda: optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen()),
  "GeN of sgd": lambda: gen_optax.gen_sgd(),
  "Sophia's own": lambda: optax.contrib.sophia(0.1),
  "labels": lambda: optax.partition(
    {"x": optax.sgd(0.1)}, {"a": "x", "b": "x"}
  ),
}
APART = {
  "sgd": lambda: optax.sgd(0.1, momentum=0.9),
  "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(0.1, 10)),
  "sophia": lambda: amos.sophia(0.1),
  "lion": lambda: optax.lion(0.1),
  "block clipping": lambda: optax.chain(
    optax.clip_by_block_rms(1.0), optax.adafactor(0.1)
  ),
  "masked by a function": lambda: optax.adamw(
    0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
  ),
  "muon": lambda: optax.contrib.muon(0.1),
  "injected": lambda: optax.inject_hyperparams(optax.adam)(0.1),
  "several steps": lambda: optax.MultiSteps(optax.sgd(0.1), 2),
  "loops and branches": lambda: changed(halved),
  "a norm for each": lambda: changed(
    lambda g, **_: [x / jnp.linalg.norm(x) for x in g]
  ),
  "the diagonal of each": lambda: changed(
    lambda g, hessian_diagonal, **_: [
      x / h for x, h in zip(g, hessian_diagonal, strict=True)
    ]
  ),
  "the loss": lambda: scaled(lambda g, value, **_: value),
}


@pytest.mark.parametrize("name", COUPLING)
def test_frozen_refuses_what_couples_leaves(name):
  with pytest.raises(ValueError, match=r"optimizers\[0\] couples leaves"):
    gen_optax.amos_router([COUPLING[name](), optax.sgd(0.1)], states="frozen")


@pytest.mark.parametrize("name", READING)
def test_frozen_refuses_what_needs_the_whole_tree(name):
  with pytest.raises(ValueError, match=r"optimizers\[1\] fails on a leaf"):
    gen_optax.amos_router([optax.sgd(0.1), READING[name]()], states="frozen")


@pytest.mark.parametrize("name", APART)
def test_frozen_takes_what_treats_leaves_apart(name):
  tx = APART[name]()
  if isinstance(tx, optax.MultiSteps):
    tx = tx.gradient_transformation()
  gen_optax.amos_router([optax.sgd(0.1), tx], states="frozen")


@pytest.mark.parametrize("name", ["an old gradient", "trips of a loop"])
def test_frozen_looks_as_far_where_nothing_is_compiled(name):
  with jax.disable_jit(), pytest.raises(ValueError, match="couples leaves"):
    gen_optax.amos_router([COUPLING[name](), optax.sgd(0.1)], states="frozen")


def test_what_vmap_cannot_follow_is_not_called_a_coupling():
  def call_out(updates, state, params=None):
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), updates
    )
    return jax.pure_callback(lambda x: x, shapes, updates), state

  tx = optax.GradientTransformation(lambda params: (), call_out)
  with pytest.raises(ValueError, match="cannot be checked") as caught:
    gen_optax.amos_router([tx, optax.sgd(0.1)], states="frozen")
  assert "couples" not in str(caught.value)


def test_optimizers_of_traced_rates_are_judged():
  def build(rate):
    pair = [optax.sgd(0.1), optax.adaptive_grad_clip(rate)]
    gen_optax.amos_router(pair, states="frozen")
    pair[1] = optax.clip_by_global_norm(rate)
    with pytest.raises(ValueError, match=r"optimizers\[1\] couples leaves"):
      gen_optax.amos_router(pair, states="frozen")
    return rate

  jax.jit(build)(0.1)
  jax.vmap(build)(jnp.ones(2))
