"""A training step as a compiled program, and what XLA says that it costs."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scripts.common import models, tasks

CYCLE = 8  # batches of a problem, and steps that are timed together


def base_optimizer() -> optax.GradientTransformation:
  return optax.adam(1e-3)


class Problem(NamedTuple):
  """A network with batches: `loss(params, batch)`, batch = (x, y)."""

  title: str
  loss: Callable
  params: optax.Params
  batches: Any  # each leaf of shape (CYCLE, batch_size, ...)

  @property
  def batch(self):
    """The shapes of one batch."""
    first = lambda batches: jax.tree.map(lambda leaf: leaf[0], batches)
    return jax.eval_shape(first, self.batches)

  @property
  def size(self) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def problem_of(task: tasks.Task, batch_size: int | None = None) -> Problem:
  batch_size = batch_size or task.batch_size
  rows = np.random.default_rng(0).permutation(len(task.data.train.y))
  rows = np.resize(rows, (CYCLE, batch_size))
  return Problem(
    title=f"{task.title.split(',')[0]}, batches of {batch_size}",
    loss=lambda params, batch: task.losses(params, *batch)[0].mean(),
    params=task.init(jax.random.key(0)),
    batches=jax.tree.map(
      lambda a: jnp.asarray(a[rows]), tuple(task.data.train)
    ),
  )


def gpt(
  width: int,
  blocks: int,
  length: int,
  batch_size: int,
  *,
  dtype=jnp.float32,
  symbols: int = 256,
) -> Problem:
  """A GPT of any size as shapes alone: nothing is allocated."""
  network = models.GPT(symbols, width, width // 64, blocks, length)
  tokens = jax.ShapeDtypeStruct((CYCLE, batch_size, length), jnp.int32)

  def init(tokens):
    params = network.init(jax.random.key(0), tokens[0, :1])
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

  def loss(params, batch):
    logits = network.apply(params, batch[0]).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
    return losses.mean()

  params = jax.eval_shape(init, tokens)
  title = f"GPT, {blocks} blocks of width {width}, batches of {batch_size}"
  return Problem(f"{title} texts of {length}", loss, params, (tokens, tokens))


def train_step(optimizer, loss) -> Callable:
  """`step(carry, batch) -> (carry, loss)` with carry (params, state)."""
  optimizer = optax.with_extra_args_support(optimizer)

  def step(carry, batch):
    params, state = carry
    value_fn = lambda p: loss(p, batch)
    value, grad = jax.value_and_grad(value_fn)(params)
    updates, state = optimizer.update(
      grad, state, params, value=value, grad=grad, value_fn=value_fn
    )
    return (optax.apply_updates(params, updates), state), value

  return step


class Cost(NamedTuple):
  """What XLA says of one compiled program.

  Attributes:
    flops: of all instructions, bodies of loops once.
    temporary: bytes of temporary buffers.
    arguments: bytes of arguments.
    moved: matrix products of a loop's body that XLA moved in front of the loop,
      where they run on every step, lazy or not.
  """

  flops: float
  temporary: int
  arguments: int
  moved: int


def cost_of(compiled) -> Cost:
  memory = compiled.memory_analysis()
  return Cost(
    flops=compiled.cost_analysis()["flops"],
    temporary=memory.temp_size_in_bytes,
    arguments=memory.argument_size_in_bytes,
    moved=moved_products(compiled.as_text()),
  )


def moved_products(text: str) -> int:
  """Products that were traced in a loop's body and run outside of any loop."""
  computations, name = {}, None
  for line in text.splitlines():
    if opening := re.match(r"(ENTRY )?%?([\w.-]+) \(.*{$", line):
      name = "ENTRY" if opening[1] else opening[2]
      computations[name] = []
    elif name is not None:
      computations[name].append(line)
  # What is reached from the entry without going through a loop's body.
  waiting, outside = ["ENTRY"], set()
  while waiting:
    name = waiting.pop()
    outside.add(name)
    called = re.findall(
      r"(?:calls|to_apply)=%?([\w.-]+)", "\n".join(computations[name])
    )
    waiting += [other for other in called if other not in outside]
  product = re.compile(r" (dot|convolution|custom-call)\(.*/while/body/")
  lines = [line for name in outside for line in computations[name]]
  return sum(bool(product.search(line)) for line in lines)


def forward_cost(problem: Problem) -> Cost:
  lowered = jax.jit(problem.loss).lower(problem.params, problem.batch)
  return cost_of(lowered.compile())


def gradient_cost(problem: Problem) -> Cost:
  gradient = jax.jit(jax.value_and_grad(problem.loss))
  return cost_of(gradient.lower(problem.params, problem.batch).compile())


def step_cost(problem: Problem, optimizer) -> Cost:
  """Work and memory of one training step whose carry is donated."""
  step = jax.jit(train_step(optimizer, problem.loss), donate_argnums=0)
  state = jax.eval_shape(optimizer.init, problem.params)
  return cost_of(step.lower((problem.params, state), problem.batch).compile())
