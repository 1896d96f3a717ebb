"""The delayed XOR problem, its networks and optimizers, and training on it.

A sequence of random signs carries two marks, one in its first tenth and one in
the four tenths after that. The label is whether the two marked signs differ.
Knowing one of them is worth nothing: the loss stays at log 2 until both are
remembered to the end.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import gen_optax

BATCH = 128
HIDDEN = 30
# A run is over when a batch, none of it seen before, has a loss below this.
SOLVED_BELOW = 0.1
# Iterations between two looks at a run, and between two points of its curve.
CHUNK = 200

CELLS = {
  "RNN": (nn.SimpleCell, lambda carry: carry),
  "LSTM": (nn.OptimizedLSTMCell, lambda carry: carry[1]),
}


class Recurrent(nn.Module):
  """One recurrent layer, and a logit from its last hidden state.

  As in the paper, recurrent weights are orthogonal, which is Flax's default,
  and the others small. The plain network has 1,021 parameters.
  """

  cell: str

  @nn.compact
  def __call__(self, x):
    small = nn.initializers.normal(0.1)
    make_cell, hidden_part = CELLS[self.cell]
    cell = make_cell(HIDDEN, kernel_init=small)
    layer = nn.RNN(cell, time_major=True, return_carry=True)
    carry, _ = layer(x)
    return nn.Dense(1, kernel_init=small)(hidden_part(carry))[:, 0]


def batch(key: jax.Array, length: int):
  """Sequences of shape (length, BATCH, 2), signs and marks; labels (BATCH,)."""
  sign_key, first_key, second_key = jax.random.split(key, 3)
  signs = jax.random.rademacher(sign_key, (length, BATCH), jnp.float32)

  def place(key, low, high):
    where = jax.random.uniform(key, (BATCH,), minval=low, maxval=high)
    return jnp.floor(where * length).astype(int)

  first, second = place(first_key, 0.0, 0.1), place(second_key, 0.1, 0.5)
  column = jnp.arange(BATCH)
  marks = jnp.zeros_like(signs).at[first, column].set(1.0)
  marks = marks.at[second, column].set(1.0)
  differ = signs[first, column] != signs[second, column]
  return jnp.stack([signs, marks], -1), differ.astype(jnp.float32)


def _open_forget_gate(path, leaf):
  """Adds 1 to the bias of an LSTM's forget gate, as is usual.

  At 0 a cell forgets half of what it holds at each step.
  """
  name = jax.tree_util.keystr(path, simple=True, separator="/")
  return leaf + 1.0 if name.endswith("hf/bias") else leaf


class Problem(NamedTuple):
  """A network and the length of the sequences."""

  cell: str
  length: int

  def init(self, key):
    params = Recurrent(self.cell).init(key, batch(key, self.length)[0])
    return jax.tree.map_with_path(_open_forget_gate, params)

  def loss(self, params, x, y):
    logits = Recurrent(self.cell).apply(params, x)
    return optax.sigmoid_binary_cross_entropy(logits, y).mean()


# Optimizers

RANKS = (0, 1, 2, 5, 10)


class Method(NamedTuple):
  """`make(rate, seed)` is the optimizer; rates are tried around `centre`."""

  make: Callable
  centre: float


def clipped(make):
  """`make(rate)` behind the clipping that PSGD does by itself."""
  return lambda rate, seed: optax.chain(
    optax.clip_by_global_norm(1.0), make(rate)
  )


def sophia(rate):
  return gen_optax.rename_extra_args(
    optax.contrib.sophia(rate), obj_fn="value_fn"
  )


def psgd_low_rank(rank):
  return lambda rate, seed: gen_optax.psgd_lra(rate, rank=rank, seed=seed)


def psgd_xmat(rate, seed):
  return gen_optax.psgd_xmat(rate, seed=seed)


METHODS = {
  **{f"PSGD rank {r}": Method(psgd_low_rank(r), 10**-1.5) for r in RANKS},
  "PSGD XMat": Method(psgd_xmat, 10**-1.5),
  "SGD": Method(clipped(optax.sgd), 10**-0.5),
  "Adam": Method(clipped(optax.adam), 10**-2.5),
  "AdaBelief": Method(clipped(optax.adabelief), 10**-2.5),
  "Adan": Method(clipped(optax.adan), 10**-2.5),
  "Sophia": Method(clipped(sophia), 10**-2.5),
}


class Setting(NamedTuple):
  """Low-rank PSGD in the search for delay 55; defaults are the product's."""

  rate: float = 10**-1.5
  rank: int = 10
  normalizer: str = "second"
  precond_rate: float = 0.1
  momentum: float = 0.0
  init_scale: float | None = None
  clip_norm: float = 1.0

  def make(self, rate, seed):
    stage = gen_optax.scale_by_psgd(
      gen_optax.psgd.low_rank(self.rank, normalizer=self.normalizer),
      precond_learning_rate=self.precond_rate,
      momentum=self.momentum,
      init_scale=self.init_scale,
      clip_norm=self.clip_norm,
      seed=seed,
    )
    return optax.chain(stage, optax.scale_by_learning_rate(rate))

  def cells(self):
    scale = "automatic" if self.init_scale is None else f"{self.init_scale:g}"
    return [
      f"{self.rate:.3g}",
      self.rank,
      self.normalizer,
      f"{self.precond_rate:g}",
      f"{self.momentum:g}",
      scale,
      f"{self.clip_norm:g}",
    ]


PAPER = Setting(
  rate=0.01, normalizer="first", precond_rate=0.01, init_scale=1.0
)
# Changes of the defaults, and of the paper's setting, most promising first.
SEARCH = (
  Setting(),
  Setting(momentum=0.9),
  Setting(rate=0.01),
  Setting(rate=0.01, momentum=0.9),
  Setting(rate=10**-1.75, momentum=0.9),
  PAPER,
  PAPER._replace(rate=10**-1.5),
  Setting(rate=0.1),
  Setting(init_scale=1.0),
  Setting(precond_rate=0.3),
  Setting(rank=5),
  PAPER._replace(precond_rate=0.1),
)


# Training


class Run(NamedTuple):
  """Training in flight.

  Attributes:
    count: iterations done.
    params, state: what is trained, and the optimizer's state.
    loss: of the last batch, before its step.
    total: the sum of losses since the last look.
  """

  count: jax.Array
  params: Any
  state: Any
  loss: jax.Array
  total: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def start(problem: Problem, make: Callable, rate, seed) -> Run:
  params = problem.init(jax.random.fold_in(jax.random.key(seed), 0))
  infinite = jnp.asarray(jnp.inf, jnp.float32)
  state = make(rate, seed).init(params)
  return Run(jnp.asarray(0), params, state, infinite, jnp.zeros_like(infinite))


@functools.partial(jax.jit, static_argnums=(0, 1))
def advance(problem: Problem, make: Callable, rate, seed, run: Run, last):
  """Trains until iteration `last`, or until a batch counts as solved."""
  optimizer = make(rate, seed)
  data_key = jax.random.fold_in(jax.random.key(seed), 1)

  def step(run):
    x, y = batch(jax.random.fold_in(data_key, run.count), problem.length)
    value_fn = lambda params: problem.loss(params, x, y)
    value, grad = jax.value_and_grad(value_fn)(run.params)
    updates, state = optimizer.update(
      grad, run.state, run.params, value=value, grad=grad, value_fn=value_fn
    )
    params = optax.apply_updates(run.params, updates)
    return Run(run.count + 1, params, state, value, run.total + value)

  def unsolved(run):
    return (run.count < last) & ~(run.loss < SOLVED_BELOW)

  return jax.lax.while_loop(unsolved, step, run._replace(total=0.0 * run.total))


def train(problem: Problem, make: Callable, rate, seed, cap, look) -> dict:
  """One run, of at most `cap` iterations, as a record for the results file.

  Runs go one after the other: under `vmap` an iteration of SGD on four seeds
  took as long as four in turn, and all would wait for the slowest.

  Args:
    problem: what is trained.
    make: `(rate, seed) -> optimizer`.
    rate: its learning rate.
    seed: of the initial parameters, the batches and the optimizer.
    cap: where an unsolved run is given up.
    look: called with the iterations done and the mean loss since the last look.

  Returns:
    `iterations`, `solved`, the `loss` over the last chunk, the `curve` of mean
    losses, one a chunk, and `seconds`.
  """
  began = time.perf_counter()
  rate = jnp.asarray(rate, jnp.float32)
  run, curve, solved = start(problem, make, rate, seed), [], False
  while (done := int(run.count)) < cap and not solved:
    run = advance(problem, make, rate, seed, run, min(done + CHUNK, cap))
    curve.append(float(run.total) / (int(run.count) - done))
    solved = bool(run.loss < SOLVED_BELOW)
    look(int(run.count), curve[-1])
    if not jnp.isfinite(curve[-1]):
      break
  return {
    "rate": float(rate),
    "seed": seed,
    "cap": cap,
    "iterations": int(run.count),
    "solved": solved,
    "loss": curve[-1],
    "curve": [float(f"{loss:.4g}") for loss in curve],
    "seconds": round(time.perf_counter() - began, 1),
  }
