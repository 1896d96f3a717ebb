"""The package does not reach out, run strings, or import more than it names."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gen_optax

PACKAGE = Path(gen_optax.__file__).parent
ROOT = Path(__file__).parents[1]
FILES = sorted(PACKAGE.rglob("*.py"))

NEEDED = {"jax", "numpy", "optax"}
# Imported where they are used, and named when they are missing.
OPTIONAL = {
  "flax_training.py": {"flax"},
  "plotting.py": {"matplotlib"},
}
# Of the standard library, what neither reaches out nor runs strings.
STANDARD = {
  *("collections", "dataclasses", "functools", "importlib", "itertools"),
  *("math", "re", "types", "typing"),
}
RUNS_STRINGS = {"eval", "exec", "compile", "__import__", "open", "input"}


def imported(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, "relative imports hide what they take"
      yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports_and_calls_of_the_source(path):
  tree = ast.parse(path.read_text())
  allowed = NEEDED | STANDARD | {"gen_optax"} | OPTIONAL.get(path.name, set())
  for module in imported(tree):
    assert module.split(".")[0] in allowed, module
    assert not module.startswith(("optax._src", "jax._src")), module
  for node in ast.walk(tree):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
      assert node.func.id not in RUNS_STRINGS, ast.unparse(node)


ALONE = """
import sys

def no_network(event, arguments):
  if event in ("socket.connect", "socket.getaddrinfo", "socket.bind"):
    raise RuntimeError(f"{event} {arguments}")

sys.addaudithook(no_network)
import jax
import jax.numpy as jnp
import numpy, optax
before = set(sys.modules)
import gen_optax

loss = lambda w: jnp.sum((w - 3.0) ** 2)
tx = gen_optax.gen_sgd()
w = jnp.zeros(2)
tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
print(*{name.split(".")[0] for name in set(sys.modules) - before})
print(*{name.split(".")[0] for name in sys.modules})
"""


def test_a_fresh_process_imports_no_extra_and_opens_no_connection():
  ran = subprocess.run(
    [sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True
  )
  assert not ran.returncode, ran.stderr
  own, everything = (set(line.split()) for line in ran.stdout.splitlines())
  assert "gen_optax" in own
  extras = {"flax", "matplotlib", "sklearn", "orbax", "tqdm", "PIL", "chex"}
  assert not extras & own
  assert not {"flax", "matplotlib", "sklearn", "orbax"} & everything


def test_what_is_declared_is_what_is_imported():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  names = {spec.split(">=")[0] for spec in project["dependencies"]}
  assert names == NEEDED
  assert all(">=" in spec for spec in project["dependencies"])
