"""What GeN's fit sees of a line whose loss is computed in bfloat16.

    python -m scripts.gen.precision

An MLP on scikit-learn's digits after some steps of Adam, and Adam's update as
the direction u. The forward pass runs in float32, or with parameters and
activations rounded to bfloat16; the loss is cast to float32 in both. Over probe
distances h:

    optimum   eta* = b / A along u, over the exact one, by a fit with known
              slope (one probe, at h) and with fitted slope (probes at -h, h)
    rounding  |phi16(h) - phi32(h) - (phi16(0) - phi32(0))|, against the bend
              |phi32(h) - phi32(0) + b h| that a fit must see

and beside them forward mode through the bfloat16 pass, which subtracts nothing
and has no h. Medians over seeds of batch and start. "good" is a ratio of 0.5
to 2.

Three flags are tried on the bfloat16 line, by what a stage can know, and judged
by how often they are raised on fits that are good and on fits that are not:

    quality    the fit's own, with float32's rounding: below 0.5
    stated     |bend| below eps(bfloat16) |loss|: the user says bfloat16
    two slopes of a fit with probes at -h and h, the fitted slope against the
               known one: more than a factor of two apart
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_optax.gen import fit as fits
from gen_optax.oracle import line
from scripts.common import cli, report, tasks

BATCH, TRAINED = 128, 40
SHOWN = -1.0, 2.5  # of the ratios, in the picture


def parse_args():
  parser = cli.parser(
    "GeN's fit of a loss computed in bfloat16.", "out/precision"
  )
  args = parser.parse_args()
  args.steps = args.steps or TRAINED
  args.distances = np.logspace(-5, 0, 6 if args.quick else 21)
  if args.quick:
    args.seeds = 1
  return args


def narrow(params):
  return jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)


def start_of(task, seed: int, steps: int):
  """Parameters after some steps, the update there, and losses on its batch."""
  rows = np.random.default_rng(seed).integers(
    len(task.data.train.y), size=(steps + 1, BATCH)
  )
  tx = optax.adam(1e-3)
  loss = lambda p, x, y: task.losses(p, x, y)[0].mean()

  @jax.jit
  def step(params, state, x, y):
    grad = jax.grad(loss)(params, x, y)
    updates, state = tx.update(grad, state, params)
    # Of unit rate, as GeN takes it.
    direction = jax.tree.map(lambda u: u * 1e3, updates)
    return optax.apply_updates(params, updates), state, direction, grad

  params = task.init(jax.random.key(seed))
  state = tx.init(params)
  for batch in rows:
    at = params
    x, y = (a[batch] for a in task.data.train)
    params, state, direction, grad = step(params, state, x, y)

  def in_float32(p):
    return loss(p, x, y)

  def in_bfloat16(p):
    return loss(narrow(p), x.astype(jnp.bfloat16), y).astype(jnp.float32)

  return at, direction, grad, {"float32": in_float32, "bfloat16": in_bfloat16}


def study(task, seed: int, steps: int, distances) -> dict:
  params, u, grad, losses = start_of(task, seed, steps)
  slope = -optax.tree.vdot(grad, u)
  exact = {
    name: jax.jit(functools.partial(line.exact_by_forward_mode, fn))(params, u)
    for name, fn in losses.items()
  }
  truth = exact["float32"]
  optimum = -truth.first / truth.second
  found = {
    "forward": float(-exact["bfloat16"].first / exact["bfloat16"].second)
  }
  found["forward"] /= float(optimum)
  points = np.concatenate([[0.0], distances, -distances]).astype(np.float32)
  phi = {
    name: np.asarray(
      jax.jit(lambda s, fn=fn: line.losses(fn, params, u, s, "map"))(points)
    )
    for name, fn in losses.items()
  }
  count = len(distances)
  for name, values in phi.items():
    zero, plus, minus = np.split(values, [1, 1 + count])
    for kind in ("known", "fitted"):
      fitted = [
        one_fit(kind, zero[0], plus[k], minus[k], h, slope)
        for k, h in enumerate(distances)
      ]
      ratio = [float(fit.optimum / optimum) for fit in fitted]
      quality = [float(fit.quality) for fit in fitted]
      slopes = [float(fit.slope / slope) for fit in fitted]
      found[name, kind] = dict(ratio=ratio, quality=quality, slopes=slopes)
  wide, short = phi["float32"][: 1 + count], phi["bfloat16"][: 1 + count]
  error = short - wide
  found["rounding"] = np.abs(error[1:] - error[0])
  found["bend"] = np.abs(wide[1:] - wide[0] + float(slope) * distances)
  bend = np.abs(short[1:] - short[0] + float(slope) * distances)
  eps = float(jnp.finfo(jnp.bfloat16).eps)
  found["stated"] = bend < eps * abs(short[0])
  return found


def one_fit(kind, zero, plus, minus, h, slope):
  rate = jnp.float32(h)
  if kind == "known":
    arguments = (1.0,), jnp.array([plus])
    return fits.fit_losses(*arguments, jnp.asarray(zero), rate, slope=slope)
  arguments = (-1.0, 1.0), jnp.array([minus, plus])
  return fits.fit_losses(*arguments, jnp.asarray(zero), rate)


def is_good(ratio):
  return (0.5 < np.asarray(ratio)) & (np.asarray(ratio) < 2)


def flags_table(found: list[dict]) -> str:
  """How often each flag is raised on good fits and on others."""
  ratio = lambda kind: np.array([f["bfloat16", kind]["ratio"] for f in found])
  of = lambda kind, key: np.array([f["bfloat16", kind][key] for f in found])
  stated = np.array([f["stated"] for f in found])
  slopes = of("fitted", "slopes")
  flags = [
    ("known slope: quality", "known", of("known", "quality") < 0.5),
    ("known slope: stated", "known", stated),
    ("fitted slope: quality", "fitted", of("fitted", "quality") < 0.5),
    ("fitted slope: two slopes", "fitted", ~is_good(slopes)),
  ]
  rows = []
  for name, kind, raised in flags:
    good = is_good(ratio(kind))
    share = lambda on, raised=raised: (
      f"{raised[on].sum()} of {on.sum()}" if on.any() else "-"
    )
    rows.append([name, share(~good), share(good)])
  headers = ["flag, on the bfloat16 line", "raised on bad fits", "on good ones"]
  return report.table(headers, rows)


def median(found, get):
  return np.median([get(one) for one in found], axis=0)


def ratio_table(found, distances) -> str:
  keys = [(p, k) for p in ("float32", "bfloat16") for k in ("known", "fitted")]
  columns = [median(found, lambda f, key=key: f[key]["ratio"]) for key in keys]
  columns += [
    median(found, lambda f, key=key: f[key]) for key in ("rounding", "bend")
  ]
  rows = [
    [f"{h:.1e}", *(float(column[k]) for column in columns)]
    for k, h in enumerate(distances)
  ]
  headers = ["h", *(f"{p}, {k} slope" for p, k in keys), "rounding", "bend"]
  return report.table(headers, rows)


def picture(found, distances, path):
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 4.2), layout="constrained"
  )
  for precision, color in (("float32", "C0"), ("bfloat16", "C3")):
    for kind, style in (("known", "o-"), ("fitted", "s--")):
      ratios = median(found, lambda f: f[precision, kind]["ratio"])  # noqa: B023
      shown = np.clip(ratios, *SHOWN)
      label = f"{precision}, slope {kind}"
      left.semilogx(distances, shown, style, color=color, label=label, ms=4)
  forward = float(median(found, lambda f: f["forward"]))
  label = f"bfloat16, forward mode: {forward:.2f}"
  left.axhline(forward, color="C2", label=label)
  left.axhspan(0.5, 2, color="0.9", zorder=0)
  left.set_ylabel("fitted optimum over the exact one")
  left.set_title("What a fit finds; beyond the axis drawn at its edge")
  right.loglog(
    distances,
    median(found, lambda f: f["bend"]),
    "C0o-",
    ms=4,
    label="bend of the line: what a fit must see",
  )
  right.loglog(
    distances,
    median(found, lambda f: f["rounding"]),
    "C3s--",
    ms=4,
    label="rounding of the bfloat16 pass",
  )
  right.set_ylabel("difference of losses")
  right.set_title("Why: rounding against the bend")
  for axes in (left, right):
    axes.set_xlabel("probe distance h along Adam's update (a learning rate)")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=130)
  plt.close(figure)


def main():
  args = parse_args()
  seeds = list(range(args.seeds))
  print(f"MLP on digits, {args.steps} steps of Adam before; seeds {seeds}")
  task = tasks.mlp()
  found = [study(task, seed, args.steps, args.distances) for seed in seeds]
  print(ratio_table(found, args.distances))
  print("\noptima over the exact one; the others are differences of losses")
  forward = [one["forward"] for one in found]
  print(f"forward mode in bfloat16: {', '.join(f'{x:.3f}' for x in forward)}\n")
  print(flags_table(found))
  picture(found, args.distances, args.out / "precision.png")
  records = [
    {" ".join(k) if isinstance(k, tuple) else k: v for k, v in one.items()}
    for one in found
  ]
  path = report.write_json(
    args.out / "precision.json",
    {"records": records},
    settings=vars(args),
    seeds=seeds,
  )
  print(f"\nrecord: {path}\npicture: {args.out / 'precision.png'}")


if __name__ == "__main__":
  main()
