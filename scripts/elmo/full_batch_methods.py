"""The methods of the full-batch comparison, and how their work is counted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

import gen_optax
from scripts.elmo import fosi

# GeN's first search evaluates the loss at most this often.
GEN_SEARCH = 25


class Work(NamedTuple):
  """Gradients with their losses, losses alone, Hessian-vector products."""

  gradients: Any
  evaluations: Any
  products: Any


class Family(NamedTuple):
  """A method with what is tuned: a form and a number.

  Attributes:
    name: the method's.
    axis: what the number is.
    forms: the forms that are tried; a form is a tuple of settings.
    numbers: tried with each form, a geometric grid that can go on.
    make: (form, number) -> optimizer.
    work: (form, number, size, state before, state after) -> `Work` of a step.
    label: form -> text.
    is_static: whether each number is a program of its own.
    is_count: whether the number is an integer, at least 1.
    keeps_gradient: whether the state holds the next gradient.
  """

  name: str
  axis: str
  forms: tuple
  numbers: tuple
  make: Callable
  work: Callable
  label: Callable
  is_static: bool = False
  is_count: bool = False
  keeps_gradient: bool = False


def _gradient_only(form, number, size, before, after) -> Work:
  del form, number, size, before, after
  return Work(1, 0, 0)


def gradient_descent(forms=(0.9, 0.0), rates=(0.03, 0.1, 0.3, 1.0)) -> Family:
  return Family(
    "gradient descent",
    "rate",
    tuple((momentum,) for momentum in forms),
    rates,
    lambda form, rate: optax.sgd(rate, momentum=form[0] or None),
    _gradient_only,
    lambda form: f"momentum {form[0]:g}",
  )


def lbfgs(memories=(3, 5, 8, 12, 20, 30, 50, 80)) -> Family:
  def work(form, number, size, before, after):
    del form, number, size
    # Each trial of the line search is a gradient, and the last one is kept.
    trials = optax.tree.get(after, "num_linesearch_steps")
    return Work(trials + ~jnp.isfinite(optax.tree.get(before, "value")), 0, 0)

  return Family(
    "L-BFGS",
    "memory",
    ((),),
    memories,
    lambda form, memory: optax.lbfgs(memory_size=int(memory)),
    work,
    lambda form: "zoom line search",
    is_static=True,
    is_count=True,
    keeps_gradient=True,
  )


def gen(bases=("momentum", "adam"), every=(1, 2, 4, 8)) -> Family:
  makers = {"momentum": gen_optax.gen_momentum, "adam": gen_optax.gen_adam}
  makers["sgd"] = gen_optax.gen_sgd
  dense_start = 20

  def work(form, every, size, before, after):
    del form, size, after
    state = optax.tree.get(before, "ScaleByGenState")
    fits = (state.count < dense_start) | (state.count % every == 0)
    return Work(1, jnp.where(state.calibrated, fits, GEN_SEARCH), 0)

  return Family(
    "GeN",
    "every",
    tuple((base,) for base in bases),
    every,
    lambda form, every: makers[form[0]](every=every, dense_start=dense_start),
    work,
    lambda form: form[0],
    is_count=True,
  )


def psgd(probabilities=(1.0, 0.1), rates=(0.03, 0.1, 0.3, 1.0)) -> Family:
  def work(form, rate, size, before, after):
    del form, rate, size, before
    info = optax.tree.get(after, "ScaleByPsgdState").info
    return Work(1, 0, info.updated | info.rejected)

  return Family(
    "PSGD",
    "rate",
    tuple((10, probability) for probability in probabilities),
    rates,
    lambda form, rate: gen_optax.psgd_lra(
      rate, rank=form[0], probability=form[1]
    ),
    work,
    lambda form: f"low rank {form[0]}, updates with p = {form[1]:g}",
  )


def fosi_family(forms, rates=(0.03, 0.3)) -> Family:
  """Forms are (top, bottom, alpha, every)."""

  def make(form, rate):
    top, bottom, alpha, every = form
    base = optax.sgd(rate, momentum=0.9)
    return fosi.fosi(base, top=top, bottom=bottom, alpha=alpha, every=every)

  def work(form, rate, size, before, after):
    del rate, after
    top, bottom, _, every = form
    order = fosi.order_of(top, bottom, size)
    return Work(1, 0, fosi.is_due(before, every) * order)

  return Family(
    "FOSI",
    "rate",
    tuple(forms),
    rates,
    make,
    work,
    lambda form: (
      f"top {form[0]}, bottom {form[1]}, alpha {form[2]:g}, every {form[3]}, "
      "momentum 0.9"
    ),
  )


def elmo(forms, every=(10, 30, 100, 300)) -> Family:
  """Forms are (top, bottom, order, initial sigma)."""

  def make(form, every):
    top, bottom, order, sigma = form
    return gen_optax.elmo_lanczos(
      top=top, bottom=bottom, order=order, every=every, initial_sigma=sigma
    )

  def work(form, every, size, before, after):
    before = optax.tree.get(before, "ScaleByElmoState")
    after = optax.tree.get(after, "ScaleByElmoState")
    due = (before.count % every == 0) | ~before.known
    return Work(1, after.info.evaluations, due * min(form[2], size))

  return Family(
    "ELMO",
    "every",
    tuple(forms),
    every,
    make,
    work,
    lambda form: (
      f"top {form[0]}, bottom {form[1]}, {form[2]} products, "
      f"sigma from {form[3]:g}"
    ),
    is_count=True,
  )


# Forms by problem, whatever its precision. Both methods that take a subspace
# may have all of the 100 directions of the logistic regression.
ELMO_FORMS = {
  "classifier": ((10, 5, 80, 1.0), (30, 0, 60, 1.0)),
  "logistic": ((10, 0, 40, 1.0), (100, 0, 100, 1.0)),
  "autoencoder": ((10, 5, 80, 1.0), (30, 0, 60, 1.0)),
  "poisson": ((20, 10, 60, 1.0), (20, 10, 60, 1e-4)),
}
FOSI_FORMS = {
  name: tuple(
    (top, 0, alpha, 50) for top in (10, forms[1][0]) for alpha in (0.1, 1.0)
  )
  for name, forms in ELMO_FORMS.items()
}


def families(problem_name: str) -> list[Family]:
  """The methods of one problem, ELMO first."""
  kind = problem_name.split("_")[0]
  return [
    elmo(ELMO_FORMS[kind]),
    fosi_family(FOSI_FORMS[kind]),
    gradient_descent(),
    lbfgs(),
    gen(),
    psgd(),
  ]
