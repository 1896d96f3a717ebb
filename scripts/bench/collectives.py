"""What one step of each transform sends, on eight simulated devices.

Counts and bytes are read from the compiled text of a run of steps, see
`hlo.py`. The network has two layers; its own collectives (the gradient's sum
over the batch, the parameters that a forward pass gathers) are part of every
row, and those of Adam alone are the unit.

"Every step" is what no condition guards. "When due" is one trip of the loops
that hold what is lazy: a fit, a curvature, an update of a preconditioner, a
trial. The last two columns put both together, as if that were due on every step
and on every eighth (the paper's Phi): bytes of a step over those of Adam.
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType
from tqdm import tqdm

from scripts.bench import hlo, layouts
from scripts.bench.hlo import total
from scripts.common import report

STEPS = 8
SHORT = {
  "all-reduce": "sum",
  "all-gather": "gather",
  "reduce-scatter": "scatter",
  "collective-permute": "permute",
  "all-to-all": "exchange",
}
QUICK_LAYOUTS = ("data parallel", "leading axes")
QUICK = ("gen, known_slope", "gen, fit by vmap", "psgd_diagonal", "psgd_kron")


def add_options(group):
  group.add_argument(
    "--layouts", nargs="+", choices=layouts.LAYOUTS, metavar="LAYOUT"
  )


def check_options(parser, args):
  del parser
  quick = QUICK_LAYOUTS if args.quick else tuple(layouts.LAYOUTS)
  args.layouts = args.layouts or quick


def run(args) -> dict:
  jax.config.update("jax_num_cpu_devices", layouts.DEVICES)
  names = QUICK if args.quick else tuple(layouts.TRANSFORMS)
  net = layouts.network(32, 32, 16, jnp.float32)
  size = sum(p.size for p in net.params.values())
  print(f"\n{size} parameters, Auto axes, batch sharded over the axis d")
  records = {}
  for name in args.layouts:
    with tqdm(total=len(names) + 1, desc=name) as bar:
      base = sent(optax.adam(1e-3), net, layouts.LAYOUTS[name])
      found = {"adam": base}
      bar.update()
      for transform in names:
        tx = layouts.TRANSFORMS[transform]()
        found[transform] = sent(tx, net, layouts.LAYOUTS[name])
        bar.update()
    records[name] = {key: record(value, base) for key, value in found.items()}
    print(f"\n{name}\n{table(records[name])}")
  return records


def sent(tx, net, layout) -> list[hlo.Collective]:
  mesh = layout.make_mesh(AxisType.Auto)
  with jax.set_mesh(mesh):
    placed = layouts.place(net, layout, mesh)
    lowered = layouts.train(tx, placed, STEPS, layout).lower(placed)
    return hlo.collectives_of(lowered.compile().as_text(), STEPS)


def record(found, base) -> dict:
  unit = total(base).bytes
  always, due = total(found, lazy=False), total(found, lazy=True)
  return {
    "always": always._asdict() | {"kinds": kinds(found, False)},
    "due": due._asdict() | {"kinds": kinds(found, True)},
    "over_base": {
      every: (always.bytes + due.bytes / every) / unit for every in (1, 8)
    },
  }


def kinds(found, lazy) -> str:
  """How many of each kind, as in "9 sum, 3 gather"."""
  counts = {
    kind: total(found, lazy=lazy, kind=kind).count for kind in hlo.KINDS
  }
  return ", ".join(
    f"{report.number(count)} {SHORT[kind]}"
    for kind, count in counts.items()
    if count
  )


def table(records: dict) -> str:
  rows = [
    [
      name,
      row["always"]["kinds"] or "-",
      round(row["always"]["bytes"]),
      row["due"]["kinds"] or "-",
      round(row["due"]["bytes"]),
      f"{row['over_base'][1]:.3f}",
      f"{row['over_base'][8]:.3f}",
    ]
    for name, row in records.items()
  ]
  headers = ["one step", "every step", "bytes", "when due", "bytes"]
  return report.table([*headers, "/ Adam, Phi = 1", "Phi = 8"], rows)
