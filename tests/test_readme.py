"""The README's Python runs, top to bottom, in one namespace."""

import pathlib
import re
import subprocess
import sys

import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_readme_code_runs(capsys):
  blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
  assert len(blocks) >= 3
  namespace = {}
  # The lines of a loop stand before the program that defines their names.
  loop = re.search(r"\n\n```\n(.*?)```", README.read_text(), re.DOTALL)[1]
  for block in [blocks[0], loop, *blocks[1:]]:
    exec(compile(block, str(README), "exec"), namespace)
  first, *report = capsys.readouterr().out.splitlines()
  loss, rate = re.fullmatch(r"loss ([\d.]+), rate ([\d.]+)", first).groups()
  assert float(loss) < 0.05 and float(rate) > 0
  # The curvature report: its heading, three eigenvalues, the verdict.
  assert len(report) == 5 and report[0].split()[0] == "eigenvalue"


def test_ci_runs_the_readme_test_command():
  commands = re.findall(r"```sh\n(.*?)\n```", README.read_text(), re.DOTALL)
  assert len(commands) == 2
  script = (README.parent / ".ci" / "run").read_text()
  assert commands[1] in script


def text_of(path):
  """A page, with what is broken over lines in one."""
  return " ".join(path.read_text().split())


def test_every_script_that_a_text_names_is_there():
  root = README.parent
  pages = [README, root / "CHANGELOG.md"]
  for folder in ("scripts", "gen_optax", "tests"):
    pages += (root / folder).rglob("*.py")
  for page in pages:
    text = text_of(page)
    for path in re.findall(r"\bscripts/[\w/]+\.py\b", text):
      assert (root / path).is_file(), (page, path)
    assert not re.search(r"python scripts/\w", text), page
    for module in re.findall(r"python -m (scripts(?:\.\w+)+)", text):
      path = root / module.replace(".", "/")
      ways = (path.with_suffix(".py"), path / "__main__.py")
      assert any(way.is_file() for way in ways), (page, module)


@pytest.mark.parametrize("name", ["flax", "matplotlib"])
def test_import_needs_neither_flax_nor_matplotlib(name):
  code = f"import sys; sys.modules['{name}'] = None; import gen_optax"
  subprocess.run([sys.executable, "-c", code], check=True)


def test_modules_that_need_an_extra_are_imported_on_use():
  code = (
    "import sys, gen_optax; assert 'flax' not in sys.modules; "
    "gen_optax.flax_training.TrainState; gen_optax.plotting.plot_line"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
