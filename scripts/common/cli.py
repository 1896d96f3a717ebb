"""The command line that the scripts share, and results that can be resumed."""

import argparse
import json
import os
from pathlib import Path

from scripts.common.report import write_json


def parser(description: str, out: str) -> argparse.ArgumentParser:
  """Arguments that every training script takes; `out` is a default folder."""
  parser = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  parser.add_argument(
    "--steps", type=int, help="training steps (default: each task's own)"
  )
  parser.add_argument(
    "--seeds", type=int, default=3, help="number of seeds, side by side"
  )
  parser.add_argument(
    "--data-dir",
    type=Path,
    default=os.environ.get("GEN_OPTAX_DATA"),
    help="folder with mnist.npz, cifar10_30k_jpeg.npz, tinyshakespeare.txt",
  )
  parser.add_argument(
    "--out", type=Path, default=Path(out), help="folder for what is written"
  )
  parser.add_argument(
    "--quick", action="store_true", help="a small form, about a minute"
  )
  return parser


class Results:
  """Records by key, kept in a JSON file after each one.

  A run that was cut short goes on where it stopped. `settings` must be those
  that the file was begun with, since records made otherwise do not compare.
  """

  def __init__(self, path: Path, settings: dict):
    self.path = Path(path)
    self.settings = settings
    self.records = {}
    if self.path.exists():
      stored = json.loads(self.path.read_text())
      if stored["settings"] != settings:
        raise SystemExit(
          f"{path} was begun with {stored['settings']}, not {settings}: "
          "delete it or choose another --out"
        )
      self.records = stored["records"]

  def get(self, key: str, make):
    """The record of `key`; `make()` is called for it where it is missing."""
    if key not in self.records:
      self.records[key] = make()
      self._save()
    return self.records[key]

  def _save(self):
    # Written beside and moved, so that a cut never leaves half a file.
    partial = self.path.with_suffix(".partial")
    write_json(partial, {"records": self.records}, settings=self.settings)
    partial.replace(self.path)
