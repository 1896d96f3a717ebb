"""Lanczos in float32 against a dense decomposition in float64.

The Hessian is that of a digits classifier after some steps of gradient descent.
Both see the same float32 parameters and images; the reference computes the
Hessian's columns in float64 and decomposes it with LAPACK.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from tqdm import tqdm

import gen_optax
from scripts.common.report import table
from scripts.elmo import full_batch

TOP, ORDER = 10, 40
STEPS, RATE = 60, 0.5
# Columns of the dense Hessian that are computed together.
COLUMNS = 64


def trained(problem, seed):
  """Parameters after gradient descent, and the data."""
  params, data = problem.draw(seed)
  step = jax.jit(lambda p: p - RATE * jax.grad(problem.loss)(p, data))
  for _ in range(STEPS):
    params = step(params)
  return params, data


def by_lanczos(problem, params, data) -> np.ndarray:
  """The top eigenvalues in the parameters' precision."""

  def find(params):
    value_fn = lambda p: problem.loss(p, data)
    return gen_optax.extreme_eigenpairs(
      lambda v: gen_optax.hvp(value_fn, params, v)[1],
      params,
      top=TOP,
      bottom=0,
      order=ORDER,
    ).values

  return np.asarray(jax.jit(find)(params))


def dense_hessian(problem, params, data, progress=None) -> np.ndarray:
  """The Hessian in float64, COLUMNS columns at a time."""
  with jax.enable_x64(True):
    wide = lambda x: (
      x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
    )
    params, data = jax.tree.map(wide, (params, data))
    slope = jax.grad(problem.loss)

    @jax.jit
    def columns(units):
      product = lambda v: jax.jvp(lambda p: slope(p, data), (params,), (v,))[1]
      return jax.vmap(product)(units)

    n = params.size
    parts = []
    for first in range(0, n, COLUMNS):
      # The last group is as long as the others, so that nothing is compiled
      # again; its rows beyond n are zero.
      units = np.zeros((COLUMNS, n))
      count = min(COLUMNS, n - first)
      units[np.arange(count), first + np.arange(count)] = 1
      parts.append(np.asarray(columns(units))[:count])
      if progress is not None:
        progress.update(count)
  hessian = np.concatenate(parts)
  return (hessian + hessian.T) / 2


def compare(hidden: int, images: int, seed: int) -> dict:
  """Relative errors of the top eigenvalues, by rank."""
  problem = full_batch.classifier(hidden=hidden, images=images)
  params, data = trained(problem, seed)
  found = by_lanczos(problem, params, data)
  n = params.size
  with tqdm(total=n, desc="dense Hessian", unit="column") as bar:
    hessian = dense_hessian(problem, params, data, bar)
  exact = scipy.linalg.eigh(
    hessian,
    eigvals_only=True,
    subset_by_index=(n - TOP, n - 1),
    overwrite_a=True,
    check_finite=False,
  )[::-1]
  return {
    "parameters": int(n),
    "images": images,
    "seed": seed,
    "products": ORDER,
    "float32": found,
    "float64": exact,
    "errors": np.abs(found - exact) / exact,
  }


def show(record: dict):
  """Prints what `compare` found."""
  rows = [
    [str(rank + 1), f"{float(b):.8f}", f"{float(a):.8f}", float(error)]
    for rank, (a, b, error) in enumerate(
      zip(record["float32"], record["float64"], record["errors"], strict=True)
    )
  ]
  print(
    f"\nTop {TOP} eigenvalues of the Hessian of a digits MLP with "
    f"{record['parameters']} parameters\non {record['images']} images after "
    f"{STEPS} steps of gradient descent at rate {RATE} (seed "
    f"{record['seed']}):\n{record['products']} Hessian-vector products in "
    "float32 against a dense decomposition in float64.\n"
  )
  print(table(["rank", "dense, float64", "Lanczos, float32", "error"], rows))
  worst = max(float(error) for error in record["errors"])
  verdict = "within" if worst <= 1e-6 else "NOT within"
  print(f"Worst relative error {worst:.1e}: {verdict} 1e-6.")
