"""`oracle/drift.py`: what ELMO and AMOS share."""

import amos_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_optax import amos, elmo
from gen_optax.oracle.drift import no_drift, observe

EMA, EPS = 0.7, 0.01


def as_tree(x):
  return {"a": jnp.asarray(x[:2]), "b": jnp.asarray(x[2:]).reshape(3, 1)}


@pytest.mark.parametrize("corrected", [True, False])
def test_a_tree_and_a_vector_have_the_same_drift(x64, corrected):
  points, curvatures = np.random.default_rng(0).normal(size=(2, 5, 5))
  expected = reference.average_drift(points, curvatures, EMA, corrected, EPS)
  # A step that was not taken is no observation.
  stay = [0, 1, 2, 2, 3, 4]
  expected = [expected[k] for k in stay]
  w = as_tree(points[0])
  vector, tree = no_drift(w, jnp.zeros(5)), no_drift(w, w)
  for w, h, average in zip(
    points[stay], curvatures[stay], expected, strict=True
  ):
    w, by_leaf, h = as_tree(w), as_tree(h), jnp.asarray(h)
    vector = observe(vector, w, h, vector.curvature, EMA, EPS)
    tree = observe(tree, w, by_leaf, tree.curvature, EMA, EPS)
    found = vector.lipschitz(corrected)
    np.testing.assert_allclose(found, average, rtol=1e-12)
    jax.tree.map(
      np.testing.assert_array_equal,
      tree.lipschitz(corrected),
      as_tree(found),
    )


def test_each_room_has_its_name_for_it():
  assert amos.Drift is elmo.DriftState
