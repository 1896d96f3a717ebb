"""Fixtures that several test files share."""

import gc
import os

from scripts.common import xla

# Most of the suite's time is compilation of programs that run once.
xla.compile_fast()

# Devices are threads of one pool, and two collectives may wait at once: eight
# threads, one a device, can then wait for each other for ever.
os.environ.setdefault("NPROC", "32")

# Traces and programs stay, and the collector walks through all of them again
# and again: a seventh of the suite's time.
gc.set_threshold(100_000, 50, 50)

import jax  # noqa: E402
import pytest  # noqa: E402

# Meshes are simulated; set before any test starts the backend.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def x64():
  """64-bit arrays for one test; the default stays float32."""
  with jax.enable_x64(True):
    yield
