"""Public names are documented in the project's form, and listed."""

import ast
import inspect
import re
import textwrap

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


def makes_transformation(function):
  result = str(inspect.signature(function).return_annotation)
  return "GradientTransformation" in result


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_documented(name):
  """Of what raises, takes a loss closure or makes a transformation."""
  function = FUNCTIONS[name]
  tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
  if (
    any(isinstance(node, ast.Raise) for node in ast.walk(tree))
    or "value_fn" in inspect.signature(function).parameters
    or makes_transformation(function)
  ):
    assert "\nRaises:" in inspect.getdoc(function)


PAPER = re.compile(r"\b(19|20)\d\d\b|under review|(GeN|PSGD|ELMO)\s+paper")
PLACE = re.compile(
  r"\b(Alg\.|Algorithm|App\.|Appendix|Eq\.|Equation|Example|Figure|Lemma|"
  r"Notation|Sec\.|Table|Theorem) \(?[A-Z]?\.?\d",
  re.IGNORECASE,
)
# They change how a stage is called, and nothing that a paper describes.
ADAPTERS = ("with_full_params", "keep_extra_args", "rename_extra_args")
OWN = ("skip_implausible", "given_diagonal")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_place_in_a_paper_comes_with_the_paper(name):
  """And a method with its paper, but for this package's own."""
  function = FUNCTIONS[name]
  text = inspect.getdoc(function)
  if PLACE.search(text):
    assert PAPER.search(text), PLACE.search(text).group()
  if makes_transformation(function):
    known = "References:" in text and PAPER.search(text.split("References:")[1])
    assert known or name.split(".")[-1] in (*ADAPTERS, *OWN)


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


def test_a_star_import_brings_the_public_names():
  namespace = {}
  exec("from gen_optax import *", namespace)
  modules = {"amos", "elmo", "psgd", "problems", "plotting"}
  names = set(public(gen_optax)) | modules
  assert set(namespace) - {"__builtins__"} == names
