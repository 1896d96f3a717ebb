"""Logistic regression on outer products of pixels (App. E.3), reduced.

The paper regresses MNIST on all products of two pixels, over six million
coefficients. Here images are 7x7 (digits: 8x8) and each product stands once:
12,260 coefficients (20,810). Batches of 500 as in the paper, no momentum for
SGD and PSGD. Bernoulli noise, where asked for, whitens each pixel of both
splits with probability 0.1, once.

Everybody has the same work: passes over the training set, a product with the
Hessian counted as two. L-BFGS (optax, its line search, full batches) needs no
rate and tries as many lengths of its memory as the others try rates.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_optax import psgd
from gen_optax.plotting import COLOURS
from scripts.common import data_sets, models, tasks, tuning
from scripts.common.report import number
from scripts.psgd import lenet_lab
from scripts.psgd.annealed import first_order, psgd_recipe, search, setting

MODEL = models.LogisticRegression(classes=10)
PSGD_PASSES = 3  # for each of SGD's: a gradient, a product with the Hessian
MEMORIES = (10, 20, 5, 40, 3, 80, 2, 160)
# Products of pixels are small numbers, and rates large.
RECIPES = {
  "sgd": first_order("SGD", 30.0, optax.identity),
  "adam": first_order("Adam", 0.3, optax.scale_by_adam),
  "belief": first_order("AdaBelief", 0.3, optax.scale_by_belief),
  "xmat": psgd_recipe("PSGD XMat", psgd.xmat(), start=3.0),
  "lra10": psgd_recipe("PSGD low rank 10", psgd.low_rank(10), start=1.0),
}
LBFGS = "L-BFGS"


def outer_data(data_dir, noise: float) -> tuple:
  """Features and labels of both splits, on the device; and a title."""
  if data_dir is None:
    data, name = data_sets.digits(), "scikit-learn's digits"
  else:
    data = data_sets.mnist(data_dir, size=14, train=10_000)
    data = data_sets.Data(*(data_sets.Split(halved(x), y) for x, y in data))
    name = "10,000 images of MNIST at 7x7"
  rng = np.random.default_rng(3)
  data = data_sets.Data(
    *(data_sets.Split(products(whitened(rng, x, noise)), y) for x, y in data)
  )
  title = f"Outer products, {name}"
  if noise:
    title += f", each pixel white with probability {noise:g}"
  title += f": {10 * (1 + data.train.x.shape[1]):,} coefficients"
  return jax.tree.map(jnp.asarray, data), title


def halved(x):
  return x.reshape(len(x), 7, 2, 7, 2, 1).mean((2, 4))


def whitened(rng, x, share):
  return np.where(rng.random(x.shape) < share, np.float32(1), x)


def products(x):
  """Each product of two pixels, or a pixel's square, once."""
  x = x.reshape(len(x), -1)
  first, second = np.triu_indices(x.shape[1])
  return x[:, first] * x[:, second]


def losses(params, x, y):
  logits = MODEL.apply(params, x)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
  return loss, (logits.argmax(-1) == y).astype(jnp.float32)


@jax.jit
def judge(params, split):
  """Mean loss and error in %."""
  loss, right = losses(params, *split)
  return loss.mean(), 100 * (1 - right.mean())


def study(args, results, bar):
  """The records of all methods without and with noise, by title."""
  task, found = None, []
  for noise in (0.0, 0.1):
    data, title = outer_data(args.data_dir, noise)
    # One task for both, since runs are compiled once for each.
    task = task or tasks.Task(
      name="outer",
      title=title,
      data=data,
      init=lambda key, x=data.train.x[:1]: MODEL.init(key, x),
      losses=losses,
      batch_size=500,
      steps=args.steps or (60 if args.quick else 500),
      judged_by="loss",
    )
    found.append((title, methods(task, data, noise, args, results, bar)))
  return found


def methods(task, data, noise, args, results, bar):
  makers = {name: functools.partial(stochastic, name=name) for name in RECIPES}
  makers[LBFGS] = full_batch
  records = {}
  with bar(f"logistic, noise {noise:g}", len(makers), "method") as progress:
    for name, make in makers.items():
      progress.set_postfix_str(name)
      records[name] = results.get(
        f"logistic/{noise:g}/{name}", lambda make=make: make(task, data, args)
      )
      progress.update(1)
  return records


def stochastic(task, data, args, *, name):
  """Searches a rate by training loss, then runs the other seeds."""
  work = PSGD_PASSES if name in ("xmat", "lra10") else 1
  steps = task.steps * PSGD_PASSES // work
  examples = len(data.train.y)

  def run(rate, seed, look=None):
    part = lenet_lab.Part(
      RECIPES[name].method,
      setting(rate, seed, steps),
      tuning.batch_rows(examples, task.batch_size, steps, seed),
      data.train,
    )
    return lenet_lab.train(task, [part], seed, look=look)[0]

  def trial(rate):
    found = [judge(run(rate, s), data.train)[0] for s in args.search_seeds]
    loss = float(np.mean(found))
    return -loss if np.isfinite(loss) else -np.inf

  found = search(trial, RECIPES[name].start, args.trials)
  runs = []
  for seed in args.report_seeds:
    curve, began = [], time.perf_counter()

    def look(step, params, curve=curve):
      passes = work * step * task.batch_size / examples
      curve.append((passes, float(judge(params, data.train)[0])))

    params = run(found["best_rate"], seed, look)
    runs.append(record(data, params, curve, began))
  return {"search": found, "runs": runs}


def full_batch(task, data, args):
  """L-BFGS for as many passes as the others have."""
  passes = PSGD_PASSES * task.steps * task.batch_size / len(data.train.y)
  memories = MEMORIES[: args.trials]
  tried = {}
  for memory in memories:
    found = [lbfgs(task, data, memory, passes, s) for s in args.search_seeds]
    tried[memory] = float(np.mean([run["train_loss"] for run in found]))
  best = min(tried, key=tried.get)
  runs = [lbfgs(task, data, best, passes, s) for s in args.report_seeds]
  found = {"rates": memories, "scores": list(tried.values())}
  return {"search": {**found, "best_rate": best}, "runs": runs}


@functools.partial(jax.jit, static_argnums=0)
def lbfgs_step(memory, params, state, images):
  def value_fn(params):
    return losses(params, *images)[0].mean()

  optimizer = optax.lbfgs(memory_size=memory)
  value, grad = optax.value_and_grad_from_state(value_fn)(params, state=state)
  updates, state = optimizer.update(
    grad, state, params, value=value, grad=grad, value_fn=value_fn
  )
  probes = optax.tree.get(state, "num_linesearch_steps")
  return optax.apply_updates(params, updates), state, value, probes


def lbfgs(task, data, memory, passes, seed):
  params = lenet_lab.one(tuning.initial(task, (seed,))[0])
  state = jax.jit(optax.lbfgs(memory_size=memory).init)(params)
  step = functools.partial(lbfgs_step, memory, images=data.train)
  jax.block_until_ready(step(params, state))  # compiles
  curve, spent, began = [], 1, time.perf_counter()
  while spent < passes:
    params, state, value, probes = step(params, state)
    curve.append((spent, float(value)))
    spent += int(probes)
    if len(curve) > 20 and curve[-20][1] == curve[-1][1]:
      break  # nothing below it in float32
  return record(data, params, curve, began)


def record(data, params, curve, began):
  seconds = time.perf_counter() - began
  return {
    "train_loss": float(judge(params, data.train)[0]),
    "test_error": float(judge(params, data.test)[1]),
    "passes": curve[-1][0],
    "seconds": seconds,
    "curve": [(round(at, 2), float(f"{loss:.4g}")) for at, loss in curve],
  }


HEADERS = ("optimizer", "rate or memory", "train loss", "test error %")
HEADERS += ("passes", "seconds")


def rows(records):
  def mean(runs, key):
    return np.mean([float(run[key]) for run in runs])

  out = []
  for name, found in records.items():
    search, runs = found["search"], found["runs"]
    errors = np.array([float(run["test_error"]) for run in runs])
    out.append(
      [
        label(name),
        f"{search['best_rate']:.2g}, best of {len(search['rates'])}",
        number(mean(runs, "train_loss")),
        f"{errors.mean():.2f} ± {errors.std():.2f}",
        f"{mean(runs, 'passes'):.0f}",
        f"{mean(runs, 'seconds'):.1f}",
      ]
    )
  return out


def label(name):
  return RECIPES[name].label if name in RECIPES else name


def draw(axes, found):
  """Training loss over passes: every seed a line."""
  for panel, (title, records) in zip(axes, found, strict=True):
    for (name, each), colour in zip(records.items(), COLOURS, strict=False):
      for i, run in enumerate(each["runs"]):
        passes, loss = np.array(run["curve"], float).T
        named = {"label": label(name)} if i == 0 else {}
        panel.plot(passes, loss, color=colour, lw=1.3, **named)
    panel.set(yscale="log", xlabel="passes over the training set")
    panel.set(ylabel="training loss")
    panel.set_title("Bernoulli noise" if "white" in title else "clean images")
  axes[0].legend(frameon=False, fontsize="small")
