"""What changes slowly is looked at on some steps, and remembered between."""

from collections.abc import Callable
from typing import Any

import jax

from gen_optax.helpers.lazy import run_if

# The first steps look every time: the parameters leave their start, and a
# momentum builds up. Later ones move by a small part of the way behind them.
FIRST_LOOKS = 20
EVERY = 8


def look(count: jax.Array, observe: Callable[[Any], Any], known: Any) -> Any:
  """`observe(known)` on a call that looks, else `known` itself.

  Args:
    count: number of calls before.
    observe: a function from what is known to what is known then.
    known: any tree of arrays.

  Returns:
    What is known now.
  """
  # Between the fits of `every=8`.
  late = (count - FIRST_LOOKS) % EVERY == 0
  return run_if((count < FIRST_LOOKS) | late, observe, known)
