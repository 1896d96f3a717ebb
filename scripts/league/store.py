"""Results of runs in a file of JSON lines, each under what it depends on.

A run is known by workload and form, entrant, setting, seed, amount of work, and
a hash of the code that decides its result. A rerun finds it, whatever else has
changed; a cut run loses the last line at most.
"""

import ast
import functools
import hashlib
import importlib.metadata
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What decides every run, whoever runs on what.
COMMON = (
  "scripts/common/data_sets.py",
  "scripts/common/models.py",
  "scripts/league/entrant.py",
  "scripts/league/layers.py",
  "scripts/league/meter.py",
  "scripts/league/ranges.py",
  "scripts/league/references.py",
  "scripts/league/runner.py",
  "scripts/league/workload.py",
  # The polynomial average that everybody is read at.
  "gen_optax/averaging.py",
)


class Store:
  """Records by key, appended to a file one by one."""

  def __init__(self, path: Path):
    self.path = Path(path)
    self.records = {}
    if self.path.exists():
      for line in self.path.read_text().splitlines():
        self._read(line)

  def _read(self, line: str):
    try:
      entry = json.loads(line)
    except json.JSONDecodeError:
      return  # cut while it was written
    self.records[entry["key"]] = entry["record"]

  def get(self, key: str):
    return self.records.get(key)

  def put(self, key: str, record: dict):
    self.path.parent.mkdir(parents=True, exist_ok=True)
    # JSON has no infinity; Python reads and writes NaN and Infinity alike.
    line = json.dumps({"key": key, "record": record})
    # The newline first: a line that was cut before must not swallow this one.
    with self.path.open("a") as file:
      file.write("\n" * self._is_cut() + line + "\n")
    self.records[key] = record

  def _is_cut(self) -> bool:
    if not self.path.exists() or not self.path.stat().st_size:
      return False
    with self.path.open("rb") as file:
      file.seek(-1, 2)
      return file.read(1) != b"\n"


def key_of(
  workload: str, form, entrant: str, setting, seed: int, work: str, version: str
) -> str:
  """One line that names a run."""
  numbers = {name: f"{x:.6g}" for name, x in sorted(setting.items())}
  return json.dumps(
    [workload, list(form), entrant, numbers, seed, work, version]
  )


@functools.lru_cache
def version_of(files: tuple[str, ...]) -> str:
  """A hash of code and of jax's and optax's versions.

  Comments, layout and docstrings do not enter it. A folder stands for all
  modules in it.
  """
  digest = hashlib.sha256()
  for name in ("jax", "optax", "flax"):
    digest.update(importlib.metadata.version(name).encode())
  for name in sorted({*COMMON, *files}):
    path = ROOT / name
    for module in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
      digest.update(_code(module).encode())
  return digest.hexdigest()[:12]


@functools.lru_cache
def _code(path: Path) -> str:
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    body = getattr(node, "body", None)
    if isinstance(body, list) and body and _is_docstring(body[0]):
      body[0] = ast.Pass()
  return ast.dump(tree)


def _is_docstring(node) -> bool:
  return (
    isinstance(node, ast.Expr)
    and isinstance(node.value, ast.Constant)
    and isinstance(node.value.value, str)
  )


def commit() -> str:
  """The commit that is checked out, with a plus where files differ from it."""

  def git(*args):
    ran = subprocess.run(
      ["git", *args], cwd=ROOT, capture_output=True, text=True
    )
    return ran.stdout.strip() if ran.returncode == 0 else ""

  changed = git("status", "--porcelain", "--", "scripts", "gen_optax")
  return (git("rev-parse", "--short", "HEAD") or "no commit") + "+" * bool(
    changed
  )
