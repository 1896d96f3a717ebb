"""Reductions over trees: the largest entry, and sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_optax.helpers import trees

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize(
  "numbers, largest",
  [
    ([1, -3, 2], 3),
    ([-0.0], 0),
    ([], 0),
    ([-np.inf, 4], np.inf),
    ([1, np.nan, np.inf], np.nan),
    ([-np.nan, 1], np.nan),
    ([6e-8, -1e-7], 1e-7),
  ],
)
def test_largest(x64, dtype, numbers, largest):
  expected = float(jnp.array(largest, dtype))
  tree = {"a": jnp.array(numbers, dtype), "b": jnp.zeros((2, 0), dtype)}
  np.testing.assert_array_equal(trees.largest(tree, jnp.float64), expected)
  batch = jax.tree.map(lambda x: jnp.stack([x, 0 * x]), tree)
  found = jax.vmap(lambda t: trees.largest(t, jnp.float64))(batch)
  np.testing.assert_array_equal(found[0], expected)


def test_nan_among_many():
  """XLA's own maximum of 1e5 numbers drops it on a CPU."""
  x = jnp.arange(1e5).at[77777].set(jnp.nan)
  find = jax.jit(lambda x: trees.largest(x, jnp.float32))
  assert jnp.isnan(find(x)) and find(jnp.arange(1e5)) == 99999


NUMBERS = np.random.default_rng(0)
TERMS = [
  NUMBERS.normal(size=shape)
  for shape in [(8, 4), (4,), (8, 4), (), (0, 3), (4,), (2**15,), (2**15,), ()]
]


def test_small_terms_of_one_shape_are_added_before_they_are_reduced(x64):
  expected = sum(x.sum() for x in TERMS)
  terms = [jnp.asarray(x) for x in TERMS] + [jnp.ones(4, jnp.float32)]
  found = trees.total(terms, jnp.float64)
  np.testing.assert_allclose(found, expected + 4, rtol=1e-12)
  program = str(jax.make_jaxpr(lambda t: trees.total(t, jnp.float64))(terms))
  # (8, 4), (4,) in two dtypes, (), (0, 3) and each of the large ones.
  assert program.count("reduce_sum") == 7
  found = trees.vdot({"a": terms[:5]}, {"a": terms[:5]}, jnp.float64)
  expected = sum(np.vdot(x, x) for x in TERMS[:5])
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_vdot_of_sizes(x64):
  """Equal to the product where that has one sign in every coordinate."""
  a = {"x": jnp.array([1.0, -2.0, 3.0]), "i": jnp.array([7]), "z": 3.0 + 4.0j}
  b = {"x": jnp.array([4.0, 5.0, -6.0]), "i": jnp.array([9]), "z": 2.0 + 0.0j}
  a, b = (jax.tree.map(jnp.asarray, tree) for tree in (a, b))
  # Integers are no coordinates, and a complex number is one.
  assert trees.vdot_of_sizes(a, b, jnp.float64) == 4 + 10 + 18 + 5 * 2
  assert trees.vdot(a, b, jnp.float64) == 4 - 10 - 18 + 3 * 2


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_terms_that_are_sharded_differently(x64, kind):
  mesh = jax.make_mesh(
    (2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType[kind],) * 2
  )
  terms = [
    jax.device_put(TERMS[0] + i, jax.NamedSharding(mesh, jax.P(*axes)))
    for i, axes in enumerate([("x",), ("y",), (None, "x"), ("x", "y"), ()])
  ]
  with jax.set_mesh(mesh):
    found = jax.jit(lambda t: trees.total(t, jnp.float64))(terms)
  np.testing.assert_allclose(found, 5 * TERMS[0].sum() + 320, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_is_finite_overflows_in_no_narrow_sum(x64, dtype):
  tree = {"a": jnp.ones(70_000, dtype), "b": jnp.full(5, -6e4, dtype)}
  assert trees.is_finite(tree)
  for bad in (jnp.nan, jnp.inf, -jnp.inf):
    assert not trees.is_finite(tree | {"b": tree["b"].at[1].set(bad)})
