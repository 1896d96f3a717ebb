"""Fixtures that several test files share."""

import jax
import pytest

# Meshes are simulated; set before any test starts the backend.
jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture
def x64():
  """64-bit arrays for one test; the default stays float32."""
  with jax.enable_x64(True):
    yield
