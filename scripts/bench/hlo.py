"""What a compiled step sends between devices, read from XLA's text.

A collective counts as often as the step runs it: those in a loop of known
length that many times. A loop whose length depends on data holds what happens
on some steps alone (a fit, an update of a preconditioner) and makes one trip
then, or a few (a search, ELMO's trials): its collectives are kept apart, for
one trip. So are those in a branch of a conditional.

Bytes are those of the result on one device: the sum of an all-reduce, the whole
array that an all-gather puts together.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "collective-permute",
  "all-to-all",
)
_OPERATION = re.compile(
  rf"= (?P<shape>\(.*?\)|\S+) (?P<kind>{'|'.join(KINDS)})(?:-start)?\("
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
  """One collective operation of a program.

  Attributes:
    kind: of `KINDS`.
    numbers: entries of its result on one device.
    bytes: of the same.
    times: how often it runs in one step, or in one trip of its loop; a part of
      one where a run of several steps does it once.
    lazy: whether that loop's length, or a branch, depends on data.
  """

  kind: str
  numbers: int
  bytes: int
  times: float
  lazy: bool


class Sum(NamedTuple):
  """Number of collectives, of the numbers that they send, and of bytes."""

  count: float
  numbers: float
  bytes: float


def collectives_of(text: str, steps: int = 1) -> list[Collective]:
  """Collectives of one step, from the text of a program of `steps` of them."""
  computations, entry = _computations(text)
  return [
    c if c.lazy else c._replace(times=c.times / steps)
    for c in _walk(computations, entry, 1, False)
  ]


def total(found, *, lazy: bool | None = None, kind: str | None = None) -> Sum:
  """The sum over `found`; over one place or one kind alone where given."""
  chosen = [
    c for c in found if lazy in (None, c.lazy) and kind in (None, c.kind)
  ]
  return Sum(
    sum(c.times for c in chosen),
    sum(c.times * c.numbers for c in chosen),
    sum(c.times * c.bytes for c in chosen),
  )


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  computations, name, entry = {}, None, ""
  for line in text.splitlines():
    if opening := re.match(r"(ENTRY )?%?([\w.-]+) \(.*{$", line):
      name = opening[2]
      entry = name if opening[1] else entry
      computations[name] = []
    elif name is not None:
      computations[name].append(line)
  return computations, entry


def _walk(computations, name, times, lazy) -> Iterator[Collective]:
  for line in computations[name]:
    if found := _OPERATION.search(line):
      numbers, size = _size(found["shape"])
      yield Collective(found["kind"], numbers, size, times, lazy)
    if " while(" in line:
      trips = _TRIPS.search(line)
      inner = (times * int(trips[1]), lazy) if trips else (1, True)
      for called in re.findall(r"(?:body|condition)=%?([\w.-]+)", line):
        yield from _walk(computations, called, *inner)
    elif " conditional(" in line:
      branches = re.search(r"branch_computations=\{(.*?)\}", line)
      called = branches[1].split(", ") if branches else []
      called += re.findall(r"(?:true|false)_computation=%?([\w.-]+)", line)
      for branch in called:
        yield from _walk(computations, branch.lstrip("%"), 1, True)
    else:
      for called in re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", line):
        yield from _walk(computations, called, times, lazy)


def _size(shape: str) -> tuple[int, int]:
  """Numbers and bytes of an array, or of all arrays of a tuple."""
  numbers = size = 0
  for dtype, axes in _ARRAY.findall(shape):
    count = math.prod(int(n) for n in axes.split(",") if n)
    bits = int(re.search(r"\d+$", dtype)[0]) if dtype != "pred" else 8
    numbers += count
    size += count * bits // 8
  return numbers, size
