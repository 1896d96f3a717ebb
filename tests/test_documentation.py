"""Public names are documented in the project's form, and listed."""

import inspect
import re

import pytest

import gen_optax
from gen_optax import amos, elmo, flax_training, plotting, problems, psgd

MODULES = (gen_optax, amos, elmo, psgd, flax_training, plotting, problems)


def public(module):
  """What a module defines or, if it is a package, hands on."""
  within = module.__name__ if not hasattr(module, "__path__") else "gen_optax"
  return {
    name: thing
    for name, thing in vars(module).items()
    if not name.startswith("_")
    and getattr(thing, "__module__", "").startswith(within)
  }


FUNCTIONS = {
  f"{module.__name__}.{name}": thing
  for module in MODULES
  for name, thing in public(module).items()
  if inspect.isfunction(thing)
}


def test_there_are_functions():
  assert len(FUNCTIONS) > 60


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_and_results_are_documented_with_an_example(name):
  function = FUNCTIONS[name]
  text = inspect.getdoc(function)
  assert text.splitlines()[0].endswith(".")
  assert ">>>" in text, "a running example"
  kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
  for parameter in inspect.signature(function).parameters.values():
    if parameter.kind not in kinds:
      assert re.search(rf"\b{parameter.name}\b", text), parameter.name
  returns = inspect.signature(function).return_annotation
  if returns is not None:
    assert "Returns:" in text


@pytest.mark.parametrize(
  "name", [name for module in MODULES for name in public(module)]
)
def test_every_name_has_a_docstring(name):
  things = [vars(module)[name] for module in MODULES if name in vars(module)]
  assert all(inspect.getdoc(thing) for thing in things)


def test_help_is_a_table_of_contents():
  listed = set(re.findall(r"\w+", gen_optax.__doc__))
  names = set(public(gen_optax)) | {"amos", "elmo", "psgd", "problems"}
  assert names | {"flax_training", "plotting"} <= listed
