"""The benchmark's count of ELMO's passes: products when they are due."""

import jax
import jax.numpy as jnp
import pytest

from scripts.bench import elmo, programs


@pytest.fixture
def problem():
  def loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)

  keys = jax.random.split(jax.random.key(0), 4)
  params = {
    "w": jax.random.normal(keys[0], (4, 8)),
    "v": jax.random.normal(keys[1], (8,)),
  }
  x = jax.random.normal(keys[2], (programs.CYCLE, 16, 4))
  y = jax.random.normal(keys[3], (programs.CYCLE, 16))
  return programs.Problem("network", loss, params, (x, y))


@pytest.mark.parametrize("every", elmo.EVERY)
def test_a_product_is_counted_where_eigenpairs_are_due(problem, every):
  passes = elmo.count_passes(problem, elmo.make(every))
  assert passes.products == elmo.ORDER * programs.CYCLE // every
  assert passes.losses >= programs.CYCLE
