"""GeN behind, inside and around the rest of optax, and on meshes."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import running

import gen_optax
from gen_optax.oracle.line import exact_by_forward_mode

FEATURES = jax.random.normal(jax.random.key(0), (64, 6))
TARGETS = jnp.tanh(FEATURES @ jnp.arange(1.0, 7.0)[:, None] / 6)


def loss_fn(params, x=FEATURES, y=TARGETS):
  hidden = jnp.tanh(x @ params["w"] + params["b"])
  return jnp.mean((hidden @ params["v"] - y) ** 2)


def initial_params(dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(1), 2)
  return {
    "b": jnp.zeros(8, dtype),
    "v": jax.random.normal(keys[0], (8, 1), dtype) / 3,
    "w": jax.random.normal(keys[1], (6, 8), dtype) / 3,
  }


def train(tx, steps=60, params=None, value_fn=loss_fn):
  start = initial_params() if params is None else params
  return running.train(tx, value_fn, start, steps)


def takes_a_rate(factory):
  try:
    return "learning_rate" in inspect.signature(factory).parameters
  except (TypeError, ValueError):
    return False


# Everything in optax and its contrib that is built from a learning rate.
OPTIMIZERS = {
  f"{module.__name__.removeprefix('optax.')}.{name}": getattr(module, name)
  for module in (optax, optax.contrib)
  for name in dir(module)
  if name.islower()
  and not name.startswith(("_", "scale_by"))
  and takes_a_rate(getattr(module, name))
}
# Not run with their default arguments, and why.
EXCLUDED = {
  "contrib.dpsgd": "takes one gradient for each example",
  "contrib.schedule_free": "a wrapper that moves other points than are probed",
  "contrib.schedule_free_adamw": "moves other points than are probed",
  "contrib.schedule_free_sgd": "moves other points than are probed",
  "contrib.sophia": "calls the loss obj_fn: tested below",
  "optax.lbfgs": "has its own line search: tested below without it",
}


def with_gen(optimizer, **options):
  return optax.chain(optimizer, gen_optax.scale_by_gen(**options))


def check_training(tx, factor=0.5, **options):
  losses, params, state = train(tx, **options)
  gen = optax.tree.get(state, "ScaleByGenState")
  assert jnp.isfinite(gen.learning_rate) and gen.learning_rate > 0
  assert gen.calibrated
  assert jnp.all(jnp.isfinite(losses))
  assert losses[-1] < factor * losses[0]
  return losses, params, state


def test_exclusions_exist():
  assert set(EXCLUDED) < set(OPTIMIZERS)
  assert len(OPTIMIZERS) - len(EXCLUDED) > 40


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(EXCLUDED)))
def test_behind_every_optimizer_that_takes_a_rate(name):
  factory = OPTIMIZERS[name]
  needed = {"key": 0} if name == "optax.noisy_sgd" else {}
  check_training(with_gen(factory(learning_rate=1.0, **needed)))


def test_behind_sophia():
  sophia = gen_optax.rename_extra_args(
    optax.contrib.sophia(1.0), obj_fn="value_fn"
  )
  check_training(with_gen(sophia))


def test_behind_lbfgs_the_rate_is_near_one():
  _, _, state = check_training(
    with_gen(optax.lbfgs(1.0, linesearch=None)), factor=1e-2
  )
  # A quasi-Newton direction has its own length (Prop. 3.3).
  rate = optax.tree.get(state, "ScaleByGenState").learning_rate
  assert 0.3 < rate < 3.0


def test_behind_a_random_direction():
  def update(updates, state, params=None):
    key = jax.random.fold_in(jax.random.key(2), state)
    noise = optax.tree.random_like(key, updates)
    uphill = optax.tree.vdot(noise, updates) > 0
    sign = jnp.where(uphill, -1.0, 1.0)
    return optax.tree.scale(sign, noise), state + 1

  random = optax.GradientTransformation(lambda p: jnp.zeros((), int), update)
  check_training(with_gen(random), factor=0.9)


def test_inside_inject_hyperparams_equals_outside():
  injected = optax.inject_hyperparams(gen_optax.gen_adamw)(
    learning_rate=1e-2, weight_decay=1e-2
  )
  plain = gen_optax.gen_adamw(learning_rate=1e-2, weight_decay=1e-2)
  left, right = train(injected), train(plain)
  np.testing.assert_allclose(left[0], right[0], rtol=1e-4)
  assert "weight_decay" in left[2].hyperparams
  static = optax.inject_hyperparams(
    gen_optax.scale_by_gen, static_args=("degree",)
  )
  check_training(optax.chain(optax.adam(1.0), static(every=2, horizon=400)))
  with pytest.raises(ValueError, match="degree.*static_args"):
    train(optax.inject_hyperparams(gen_optax.scale_by_gen)())


def test_inside_apply_if_finite():
  tx = optax.apply_if_finite(gen_optax.gen_adam(), max_consecutive_errors=3)
  check_training(tx)


def test_gradient_clipping_before_it_needs_the_raw_gradient():
  # The update is not the gradient: `grad` reaches GeN past the clipping.
  tx = optax.chain(optax.clip_by_global_norm(1e-3), gen_optax.gen_momentum())
  check_training(tx)


def test_outside_partition():
  labels = {"b": "adam", "v": "sgd", "w": "adam"}
  directions = optax.partition(
    {"adam": optax.adam(1.0), "sgd": optax.sgd(1.0)}, labels
  )
  check_training(with_gen(directions))


def test_inside_partition_with_full_params():
  """A closure-reading stage inside sees the whole tree through the wrapper."""
  inside = with_gen(optax.sgd(1.0), estimator="forward", fresh_slope=False)
  labels = {"b": "gen", "v": "rest", "w": "gen"}
  tx = gen_optax.with_full_params(
    optax.partition({"gen": inside, "rest": optax.sgd(0.01)}, labels)
  )
  params = initial_params()
  grad = jax.grad(loss_fn)(params)
  updates, state = tx.update(
    grad, tx.init(params), params, value_fn=loss_fn, value=loss_fn(params)
  )
  gen = optax.tree.get(state, "ScaleByGenState")
  # The line moves b and w alone: v stays where it is.
  direction = {k: -grad[k] if k != "v" else 0 * grad[k] for k in grad}
  exact = exact_by_forward_mode(loss_fn, params, direction)
  np.testing.assert_allclose(gen.info.slope, -exact.first, rtol=1e-5)
  assert loss_fn(optax.apply_updates(params, updates)) < loss_fn(params)


def test_trainable_subset_through_set_to_zero():
  """BitFit: GeN behind a partition fits the moving leaves only."""
  labels = {"b": "train", "v": "freeze", "w": "freeze"}
  tx = with_gen(
    optax.partition(
      {"train": optax.adam(1.0), "freeze": optax.set_to_zero()}, labels
    )
  )
  start = initial_params()
  _, params, _ = check_training(tx, factor=0.97)
  for name in ("v", "w"):
    np.testing.assert_array_equal(params[name], start[name])


def test_multi_steps_fits_the_closure_of_the_last_micro_batch():
  """As documented: it works, and evaluates on every micro-step."""
  tx = optax.MultiSteps(gen_optax.gen_momentum(), every_k_schedule=4)
  params = initial_params()
  state = tx.init(params)

  @jax.jit
  def step(params, state, rows):
    value_fn = lambda p: loss_fn(p, FEATURES[rows], TARGETS[rows])
    value, grad = jax.value_and_grad(value_fn)(params)
    updates, state = tx.update(
      grad, state, params, value=value, grad=grad, value_fn=value_fn
    )
    return optax.apply_updates(params, updates), state

  for t in range(80):
    params, state = step(params, state, jnp.arange(16) + 16 * (t % 4))
  gen = optax.tree.get(state.inner_opt_state, "ScaleByGenState")
  assert gen.count == 20
  assert loss_fn(params) < 0.5 * loss_fn(initial_params())


def test_update_takes_params_by_keyword():
  # MultiSteps does; inside a chain a misnamed third argument would not show.
  for tx in (
    gen_optax.scale_by_gen(),
    gen_optax.scale_by_gen_paper(0.1),
    gen_optax.gen_adam(),
    gen_optax.average_parameters(),
    gen_optax.skip_implausible(optax.sgd(1.0)),
  ):
    params = initial_params()
    grad = jax.grad(loss_fn)(params)
    tx.update(
      grad,
      tx.init(params),
      params=params,
      grad=grad,
      value_fn=loss_fn,
      unknown_to_us=1,
    )


def test_beside_an_optax_line_search_in_one_chain():
  search = gen_optax.keep_extra_args(
    optax.scale_by_backtracking_linesearch(10), "value", "grad", "value_fn"
  )
  tx = optax.chain(optax.sgd(1.0), search)
  losses, _, _ = train(
    optax.chain(gen_optax.skip_implausible(tx), optax.identity())
  )
  assert losses[-1] < losses[0]
