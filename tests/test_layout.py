"""The rooms: imports point one way, and a long file says why it is long."""

import ast
from pathlib import Path

import pytest

import gen_optax

PACKAGE = Path(gen_optax.__file__).parent
ROOT = Path(__file__).parents[1]
MOST_LINES = 400

# Each room imports from itself and from rooms of a lower floor.
FLOORS = {
  "helpers": 0,
  "guards": 1,
  "oracle": 1,
  "averaging": 2,  # a file alone: GeN's chains append it
  "gen": 3,
  "psgd": 3,
  "elmo": 3,
  "amos": 3,
  "": 4,  # the other modules beside the rooms
}


def module_of(path):
  parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module):
  first = module.split(".")[1]
  return first if first in FLOORS else ""


def imports_of(module):
  """The modules of the package that a module imports, wherever it does."""
  for node in ast.walk(ast.parse(MODULES[module].read_text())):
    if isinstance(node, ast.ImportFrom) and node.module.startswith("gen_optax"):
      for name in node.names:
        inner = f"{node.module}.{name.name}"
        yield inner if inner in MODULES else node.module
    elif isinstance(node, ast.Import):
      yield from (x.name for x in node.names if x.name in MODULES)


GRAPH = {
  module: sorted(set(imports_of(module)))
  for module in MODULES
  if MODULES[module].name != "__init__.py"
}


@pytest.mark.parametrize("module", GRAPH)
def test_imports_point_down(module):
  room = room_of(module)
  for imported in GRAPH[module]:
    assert imported in GRAPH, f"{imported}: import the file, not the room"
    target = room_of(imported)
    assert target == room or FLOORS[target] < FLOORS[room], imported


def test_no_circle():
  done, path = set(), []

  def visit(module):
    assert module not in path, " -> ".join([*path, module])
    if module in done:
      return
    path.append(module)
    for imported in GRAPH[module]:
      visit(imported)
    done.add(path.pop())

  for module in GRAPH:
    visit(module)


SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
ROOMS = {
  *("common", "gen", "psgd", "elmo", "amos", "league", "robustness", "bench"),
}


def test_every_script_has_a_room():
  folders = {path.relative_to(ROOT / "scripts").parts[0] for path in SCRIPTS}
  assert folders == ROOMS | {"__init__.py"}


@pytest.mark.parametrize(
  "path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_between_the_rooms_of_scripts_point_one_way(path):
  """To `common`, and from `bench` to any: no way leads back."""
  room = path.relative_to(ROOT / "scripts").parts[0]
  allowed = ROOMS if room == "bench" else {room, "common"}
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module.startswith("scripts"):
      assert node.module.split(".")[1] in allowed, ast.unparse(node)


SOURCES = [
  path
  for folder in ("gen_optax", "scripts", "tests", "notebooks")
  for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize(
  "path", SOURCES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_long_file_says_why(path):
  lines = path.read_text().splitlines()
  if len(lines) > MOST_LINES:
    start = " ".join(lines[:12])
    assert "one file, because" in start, f"{len(lines)} lines"
