"""Imports between the package's rooms point one way."""

import ast
from pathlib import Path

import pytest

import gen_optax

PACKAGE = Path(gen_optax.__file__).parent
# Each room imports from itself and from rooms of a lower number.
FLOORS = {"helpers": 0, "oracle": 1, "guards": 1}
FLOORS |= dict.fromkeys(("gen", "psgd", "elmo", "amos"), 2)
FRONT_DOOR = 3


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_from_below(room):
  for path in sorted((PACKAGE / room).glob("*.py")):
    for node in ast.walk(ast.parse(path.read_text())):
      module = getattr(node, "module", None) or ""
      if not isinstance(node, ast.ImportFrom) or "gen_optax" not in module:
        continue
      other = [*module.split("."), node.names[0].name][1]
      floor = FLOORS.get(other, FRONT_DOOR)
      assert other == room or floor < FLOORS[room], f"{path.name}: {module}"
