"""One step with a faulty gradient or loss, with every base and guard."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import BASES

import gen_optax

ROWS, WIDTH, BATCH = 512, 12, 128
WHEN = {"first": 0, "dense": 10, "later": 24, "lazy": 27}  # lazy: every = 8
AFTER = 60
STEPS = max(WHEN.values()) + AFTER + 2
# What a fault multiplies the gradient and the loss by; or, with a third
# number, the norm of the random direction that replaces the gradient.
FAULTS = {
  "none": (1.0, 1.0, 0.0),
  "gradient": (1e20, 1.0, 0.0),
  "loss": (1.0, 1e20, 0.0),
  "both": (1e20, 1e20, 0.0),
  "flipped": (-1.0, 1.0, 0.0),
  "random 10": (1.0, 1.0, 10.0),
  "random 1e3": (1.0, 1.0, 1e3),
  "random 1e6": (1.0, 1.0, 1e6),
}
# What is promised. Behind a bare chain a faulty gradient stays in the
# optimizer's moments, and the loss may rise along what they remember: that is
# what the gate of `generalized_newton` is for. It passes what is not twenty
# times the running size, and has nothing to compare a first gradient with,
# unless the next two are a million times shorter.
NO_MEMORY = {"sgd"}
ALWAYS = {"none", "loss", "flipped"}
SURVIVED = {
  ("chain", False): ALWAYS,
  ("chain", True): ALWAYS,
  ("generalized_newton", False): set(FAULTS) - {"random 10"},
  ("generalized_newton", True): ALWAYS | {"gradient", "both"},
}


def wild_data():
  """Separable, ill-conditioned: a clean run descends all the way."""
  rng = np.random.default_rng(0)
  scales = np.geomspace(1, 0.02, WIDTH)
  x = rng.normal(size=(ROWS, WIDTH)) * scales
  return x, np.sign(x @ (rng.normal(size=WIDTH) / scales))


def wild_cases():
  """(name, batches, rows measured, step of the fault, fault, seed)."""
  for noisy, when, fault in itertools.product((False, True), WHEN, FAULTS):
    for seed in range(3 if noisy or fault.startswith("random") else 1):
      if noisy:
        batches = np.random.default_rng(100 + seed).integers(
          ROWS, size=(STEPS, BATCH)
        )
        measured = np.arange(ROWS)
      else:
        batches = np.broadcast_to(np.arange(BATCH), (STEPS, BATCH))
        measured = np.resize(np.arange(BATCH), ROWS)
      name = ("noisy" if noisy else "fixed", when, fault, seed)
      yield name, batches, measured, WHEN[when], FAULTS[fault], seed


def wild_runs(tx, dtype):
  """Every case at once: loss before each step, and whether all was finite."""
  x, y = (jnp.asarray(a, dtype) for a in wild_data())

  def one(batches, measured, when, fault, seed):
    times_grad, times_loss, times_norm = fault
    direction = jax.random.normal(jax.random.key(seed), (WIDTH,), dtype)
    direction /= jnp.linalg.norm(direction)

    def loss(w, rows):
      return jnp.mean(jax.nn.softplus(-y[rows] * (x[rows] @ w)))

    def body(carry, t):
      w, state = carry
      clean = lambda p: loss(p, batches[t])
      value, grad = jax.value_and_grad(clean)(w)
      random = direction * jnp.linalg.norm(grad) * times_norm
      wild = jnp.where(times_norm > 0, random, grad * times_grad)
      grad = jnp.where(t == when, wild.astype(dtype), grad)
      factor = jnp.where(t == when, times_loss, 1.0).astype(dtype)
      measure = loss(w, measured)
      updates, state = tx.update(
        grad,
        state,
        w,
        value=value * factor,
        grad=grad,
        value_fn=lambda p: clean(p) * factor,
      )
      w = optax.apply_updates(w, updates)
      return (w, state), (measure, jnp.all(jnp.isfinite(w)))

    start = jnp.zeros(WIDTH, dtype)
    return jax.lax.scan(body, (start, tx.init(start)), jnp.arange(STEPS))[1]

  names, *columns = zip(*wild_cases(), strict=True)
  columns = [jnp.asarray(np.array(c)) for c in columns]
  losses, finite = jax.jit(jax.vmap(one))(*columns)
  return names, np.asarray(losses), np.all(finite, axis=1)


def wild_outcome(wrapped, base, dtype, every):
  """Name, loss before the fault, loss after it, all finite: of every case."""
  with jax.enable_x64(dtype == "float64"):
    if wrapped == "generalized_newton":
      tx = gen_optax.generalized_newton(BASES[base](), every=every)
    else:
      tx = optax.chain(BASES[base](), gen_optax.scale_by_gen(every=every))
    names, losses, finite = wild_runs(tx, jnp.dtype(dtype))
  t = np.array([WHEN[when] for _, when, _, _ in names])
  rows = np.arange(len(names))
  return list(
    zip(
      names, losses[rows, t], losses[rows, t + AFTER + 1], finite, strict=True
    )
  )


@pytest.mark.parametrize("dtype, every", [("float32", 8), ("float64", 1)])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("wrapped", ["generalized_newton", "chain"])
def test_one_wild_step(wrapped, base, dtype, every):
  """Nothing is lost, and 60 clean steps later the loss is below."""
  wrong, cases = [], wild_outcome(wrapped, base, dtype, every)
  for name, before, after, finite in cases:
    _, when, fault, _ = name
    promised = base in NO_MEMORY or fault in SURVIVED[wrapped, when == "first"]
    if not finite or (promised and not after < before):
      wrong.append((*name, f"{before:.4g} -> {after:.4g}", bool(finite)))
  lines = "\n".join(map(str, wrong))
  assert len(cases) == 152
  assert not wrong, f"{len(wrong)} of {len(cases)}:\n{lines}"
