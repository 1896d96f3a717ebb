"""Runs what a file of results lacks, with one program compiled at a time."""

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from scripts.league import store
from scripts.league.entrant import Entrant
from scripts.league.references import ADAMW
from scripts.league.runner import BUDGET, Ground, Program
from scripts.league.workload import Family, Form


class Wanted(NamedTuple):
  """A run: everything but workload and entrant.

  Attributes:
    setting: by name.
    seed: of weights, batches and dropout.
    budget: whether it may use the work that entrants have, `BUDGET` times that
      of AdamW's tuned run; references take their number of steps.
  """

  setting: Mapping[str, float]
  seed: int
  budget: bool


class Campaign:
  """Families with their data, and results by key.

  Args:
    families: by name.
    data_dir: folder of data.
    path: file of results.
    step_factor: on every number of steps, less than 1 for a quick look.
  """

  def __init__(
    self,
    families: Mapping[str, Family],
    data_dir: Path | None,
    path: Path,
    step_factor: float = 1.0,
  ):
    self.families = families
    self.data_dir = data_dir
    self.store = store.Store(path)
    self.step_factor = step_factor
    self._data = (None, None)
    self._ground = (None, None)
    self._work = 0.0

  def records(
    self,
    family: Family,
    form: Form,
    entrant: Entrant,
    wanted: Iterable[Wanted],
    label: str = "",
  ) -> list[dict]:
    """The record of each wanted run; those that are missing are made."""
    steps = max(40, round(form.steps * self.step_factor))
    form = form._replace(steps=steps)
    wanted = list(wanted)
    keys = [self._key(family, form, entrant, each) for each in wanted]
    missing = {
      key: each
      for key, each in zip(keys, wanted, strict=True)
      if self.store.get(key) is None
    }
    if missing:
      self._make(family, form, entrant, missing, label)
    return [self.store.get(key) for key in keys]

  def _key(self, family, form, entrant, wanted):
    own = Path(inspect.getsourcefile(family.load)).relative_to(store.ROOT)
    version = store.version_of((str(own), *family.files, *entrant.files))
    work = f"{BUDGET} times" if wanted.budget else "reference"
    return store.key_of(
      family.name,
      form,
      entrant.name,
      wanted.setting,
      wanted.seed,
      work,
      version,
    )

  def _make(self, family, form, entrant, missing, label):
    name = f"{label} {family.name}: {entrant.name}"
    # No bar where nobody watches.
    bar = tqdm(total=len(missing), desc=name, leave=False, disable=None)
    with bar:
      program = Program(self.ground(family, form), entrant)
      for key, each in missing.items():
        work = self._work if each.budget else form.steps * program.static_cost
        record = program.run(each.setting, each.seed, work)
        self.store.put(key, {**record, "commit": store.commit()})
        bar.set_postfix(loss=f"{record['iterate'][-1][0]:.3g}")
        bar.update()

  def ground(self, family: Family, form: Form) -> Ground:
    """Built once for runs in a row, as its data are loaded."""
    if self._ground[0] != (family.name, form):
      workload = family.build(self._load(family), form)
      ground = Ground(workload)
      self._ground = (family.name, form), ground
      cost = Program(ground, ADAMW).static_cost
      self._work = BUDGET * form.steps * cost
    return self._ground[1]

  def _load(self, family: Family):
    if self._data[0] != family.name:
      self._data = family.name, family.load(self.data_dir)
    return self._data[1]
