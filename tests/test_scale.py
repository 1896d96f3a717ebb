"""What is usual for a number: compare, doubt once, believe what stays."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_optax.guards.scale import check, exceeds, include, new_scale

SETTINGS = hypothesis.settings(deadline=None, derandomize=True)
BELIEVES = dict(above=1e3, below=1e-3)
CAPPED = dict(above=1e3, below=1e-6, cap=1e3)


def follow(values, **policy):
  """A letter for each value (used, refused, starts anew), and the scale."""
  scale, said = new_scale(jnp.float32), ""
  for x in values:
    ok, restart, scale = check(scale, jnp.float32(x), **policy)
    said += "r" if restart else "." if ok else "x"
  return said, scale


@pytest.mark.parametrize(
  "values, believed, capped",
  [
    ([1, 999, 1], "...", "..."),
    ([1, 2e3, 1], ".x.", ".x."),  # a fault passes
    ([1, 1, 1e5, 1e5, 1], "..xrx", "..x.."),  # a change of scale stays
    ([1, 1, 1e-5, 1e-5], "..xr", "...."),
    ([1, 1, 1e-8, 1e-8], "..xr", "..xr"),
    ([1, 1e9, 1e9], ".xr", ".xr"),  # two against one
    ([1, 1, 1e9, 1e9], "..xr", "..xx"),  # two against two
    ([1, 1e4, 1e-4], ".xr", ".xr"),  # both far, though not alike
    ([1, np.nan, np.inf, 1], ".xx.", ".xx."),
    ([1, 1e4, np.inf, 1], ".xx.", ".xx."),
    ([1, np.nan, 1e5], ".xx", ".xx"),  # what is not finite is no first doubt
    ([1, 1e5, np.nan, 1e5], ".xxr", ".xx."),  # nor does it end one
    ([1, 0, 1e5, 0, 1], "..x..", "..x.."),  # nor does zero
    ([0, np.nan, 1e5, 1e5], ".x..", ".x.."),  # nothing is known yet
  ],
)
def test_what_is_used_refused_and_believed(values, believed, capped):
  assert follow(values, **BELIEVES)[0] == believed
  assert follow(values, **CAPPED)[0] == capped


def test_the_usual_value_is_an_average_of_those_that_count():
  usual = lambda values, **policy: float(follow(values, **policy)[1].usual)
  assert usual([2, 4], **BELIEVES) == pytest.approx(0.9 * 2 + 0.1 * 4)
  assert usual([2, 1e9, np.nan, 0], **BELIEVES) == 2
  assert usual([2, 1e9, 1e9], **BELIEVES) == pytest.approx(1e9)
  # Capped, what is far above counts for a thousand.
  assert usual([2, 2, 1e9], **CAPPED) == pytest.approx(0.9 * 2 + 0.1 * 2e3)


def test_only_what_is_known_is_exceeded():
  zero, one = jnp.float32(0.0), jnp.float32(1.0)
  assert not exceeds(zero, jnp.float32(1e30), 10.0)
  assert exceeds(one, jnp.float32(11.0), 10.0)
  assert not exceeds(one, jnp.float32(np.nan), 10.0)


def test_an_average_alone_takes_in_what_counts():
  found = lambda x, **cap: float(
    include(jnp.float32(2.0), jnp.float32(x), **cap)
  )
  assert found(4.0) == pytest.approx(2.2)
  assert found(1e9, cap=10.0) == pytest.approx(0.9 * 2 + 0.1 * 20)
  assert found(np.nan) == found(np.inf) == found(0.0) == 2.0
  assert include(jnp.float32(0.0), jnp.float32(7.0), cap=10.0) == 7.0


@SETTINGS
@hypothesis.given(
  st.lists(st.floats(0, width=32), min_size=1, max_size=8),
  st.sampled_from([BELIEVES, CAPPED]),
)
def test_no_value_poisons_the_scale(values, policy):
  """The scale stays finite, and goes on with what stays."""
  values = [min(x, 1e30) if np.isfinite(x) else x for x in values]
  _, scale = follow(values, **policy)
  assert np.isfinite(scale.usual) and scale.usual >= 0
  said, scale = follow(values + [1.0] * 100, **policy)
  assert said.endswith(".")
  np.testing.assert_allclose(scale.usual, 1.0, rtol=0.5)


def test_it_stays_one_program_under_vmap():
  """Replicas are judged apart."""
  values = jnp.array([[1.0, 1e9, 1e9], [1.0, 1.0, 1e9]])
  scan = lambda xs: jax.lax.scan(
    lambda scale, x: (check(scale, x, **BELIEVES)[2],) * 2,
    new_scale(jnp.float32),
    xs,
  )
  _, found = jax.vmap(scan)(values)
  np.testing.assert_array_equal(found.flagged[:, -1], [False, True])
