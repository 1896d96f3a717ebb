"""What a script leaves behind: a table to read and a JSON file to keep."""

import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np


def number(x, digits: int = 3) -> str:
  """`x` as a table cell: plain between 1e-3 and 1e5, otherwise 1.2e-07."""
  x = float(x)
  if not math.isfinite(x):
    return str(x)
  if x == 0 or 1e-3 <= abs(x) < 1e5:
    return f"{x:.{digits}g}" if abs(x) < 1e3 else f"{x:.0f}"
  return f"{x:.{digits - 1}e}"


def spread(quartiles: Sequence[float], digits: int = 2) -> str:
  """The median with the quartiles behind it: 1.02 (0.98-1.10)."""
  low, middle, high = (f"{x:.{digits}f}" for x in quartiles)
  return f"{middle} ({low}-{high})"


def table(headers: Sequence[str], rows: Sequence[Sequence]) -> str:
  """A markdown table whose columns also line up in a terminal.

  Floats are shown with three digits, everything else by `str`. The first
  column is flushed left, the others right.
  """
  cells = [[_cell(x) for x in row] for row in rows]
  widths = [
    max(len(column[0]), 3, *(len(cell) for cell in column[1:]))
    for column in zip(headers, *cells, strict=True)
  ]

  def line(row):
    first, *others = zip(row, widths, strict=True)
    padded = [first[0].ljust(first[1])] + [c.rjust(w) for c, w in others]
    return "| " + " | ".join(padded) + " |"

  rule = ["-" * widths[0]] + ["-" * (w - 1) + ":" for w in widths[1:]]
  return "\n".join([line(headers), line(rule), *map(line, cells)])


# Steps that a curve of noisy losses is averaged over.
WINDOW = 20


def smooth(curves) -> np.ndarray:
  """Each point with those after it, `WINDOW` in all, as their mean."""
  kernel = np.ones(WINDOW) / WINDOW
  curves = np.asarray(curves, float)
  return np.stack([np.convolve(curve, kernel, "valid") for curve in curves])


def write_json(
  path,
  payload: Mapping,
  *,
  settings: Mapping | None = None,
  seeds: Sequence[int] = (),
) -> Path:
  """Writes `payload` with what is needed to run it again.

  Args:
    path: the file; missing folders are made.
    payload: results; numpy and jax arrays are allowed.
    settings: the script's arguments, `vars(args)`.
    seeds: every seed that the results depend on.

  Returns:
    The path written. Infinities and NaN become strings, since JSON has none.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  record = {
    "settings": settings or {},
    "seeds": list(seeds),
    "versions": {
      name: _version(name) for name in ("jax", "jaxlib", "optax", "gen_optax")
    },
    "device": jax.devices()[0].device_kind,
    "float64": bool(jax.config.jax_enable_x64),
    **payload,
  }
  text = json.dumps(_plain(record), indent=1, allow_nan=False)
  path.write_text(text + "\n")
  return path


def _cell(x) -> str:
  if isinstance(x, (float, np.floating)):
    return number(x)
  return str(x)


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "source tree"


def _plain(x):
  """`x` with arrays as lists and non-finite floats as strings."""
  if isinstance(x, Mapping):
    return {str(key): _plain(value) for key, value in x.items()}
  if isinstance(x, (list, tuple)):
    return [_plain(value) for value in x]
  if isinstance(x, (np.ndarray, np.generic, jax.Array)):
    return _plain(np.asarray(x).tolist())
  if isinstance(x, float) and not math.isfinite(x):
    return str(x)
  if x is None or isinstance(x, (bool, int, float, str)):
    return x
  return str(x)
