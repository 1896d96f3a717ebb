"""What the PSGD paper asks of its networks beyond accuracy, on LeNet-5.

Noisy labels, class imbalance and blur (Sec. 5.1, Table 3), a switch of the
optimizer when noisy labels are corrected (Fig. 2a), and entropy, margin and
forgetting (Sec. 5.4, Tables 6, 7, 10, 11). As in the paper every method keeps
the rate that was found on the plain task. Each study returns a headline, the
headers and the rows of its table, and a function that draws its picture.
"""

import jax
import numpy as np

from scripts.common import tuning
from scripts.common.data_sets import Split
from scripts.common.report import number
from scripts.psgd import lenet_lab
from scripts.psgd.annealed import RECIPES
from scripts.psgd.lenet_pictures import draw_accuracy, draw_statistics

STUDIED = ("momentum", "adam", "xmat", "lra5")
SWITCHED = ("momentum", "lra5")
CLASSES = 10


def noisy_labels(lab):
  """60 % of the training labels drawn anew from all classes."""
  noisy = with_noisy_labels(lab.task.data.train)
  kept = np.mean(noisy.y == np.asarray(lab.task.data.train.y))
  records = {}
  for name in STUDIED:
    records[name] = lab.runs(
      f"noisy-labels/{name}",
      [name],
      lambda seed, name=name: [lab.part(name, seed, images=noisy)],
      look=test_accuracy(lab),
      finish=lambda seed, params, history: {
        "noisy": lenet_lab.judge(params, noisy)
      },
    )
  rows = [
    [
      RECIPES[name].label,
      spread(runs, lambda run: run["test"]["accuracy"]),
      spread(runs, lambda run: max(acc for _, acc in run["history"])),
      spread(runs, lambda run: run["noisy"]["accuracy"]),
      spread(runs, lambda run: run["train"]["accuracy"]),
      spread(runs, lambda run: run["test"]["confidence"]),
    ]
    for name, runs in records.items()
  ]
  headers = ["optimizer", "test acc. %", "best on the way", "fit of noisy"]
  headers += ["fit of true labels", "test confidence %"]
  title = f"Noisy labels: {kept:.0%} of the training labels are right"
  return title, headers, rows, lambda axes: draw_accuracy(axes, records)


def imbalance(lab):
  """Half of the classes lose nine tenths of their training images."""
  labels = np.asarray(lab.task.data.train.y)
  rng = np.random.default_rng(2)
  rare = np.sort(rng.permutation(CLASSES)[: CLASSES // 2])
  kept = np.flatnonzero(
    ~np.isin(labels, rare) | (rng.random(len(labels)) < 0.1)
  )
  test = lab.task.data.test
  is_rare = np.isin(np.asarray(test.y), rare)
  records = {}
  for name in STUDIED:
    records[name] = lab.runs(
      f"imbalance/{name}",
      [name],
      lambda seed, name=name: [
        lab.part(name, seed, rows=kept[lab.rows(seed, examples=len(kept))])
      ],
      look=test_accuracy(lab),
      finish=lambda seed, params, history: {
        "rare": lenet_lab.judge(params, subset(test, is_rare)),
        "common": lenet_lab.judge(params, subset(test, ~is_rare)),
      },
    )
  rows = [
    [RECIPES[name].label]
    + [
      spread(runs, lambda run, part=part: run[part]["accuracy"])
      for part in ("test", "common", "rare")
    ]
    for name, runs in records.items()
  ]
  headers = ["optimizer", "test acc. %", "common classes", "rare classes"]
  title = f"Class imbalance: classes {rare.tolist()} keep a tenth, "
  title += f"{len(kept)} images in all"
  return title, headers, rows, lambda axes: draw_accuracy(axes, records)


def blur(lab):
  """Blurred training images for the first half, sharp ones after."""
  train = lab.task.data.train
  width = train.x.shape[1] / 7
  blurred = Split(blur_images(np.asarray(train.x), width), train.y)
  half = half_way(lab)

  def parts(name, seed):
    early, late = np.split(lab.rows(seed), [half])
    return [
      lab.part(name, seed, rows=early, images=blurred),
      lab.part(name, seed, rows=late),
    ]

  records = {
    name: lab.runs(
      f"blur/{name}",
      [name],
      lambda seed, name=name: parts(name, seed),
      look=test_accuracy(lab),
    )
    for name in STUDIED
  }
  rows = []
  for name, runs in records.items():
    sharp = lab.plain(name)
    rows.append(
      [
        RECIPES[name].label,
        spread(runs, lambda run: dict(map(tuple, run["history"]))[half]),
        spread(runs, lambda run: run["test"]["accuracy"]),
        spread(sharp, lambda run: run["test"]["accuracy"]),
        spread(runs, lambda run: run["train"]["accuracy"]),
      ]
    )
  headers = ["optimizer", "test acc. % half-way", "at the end", "never blurred"]
  headers += ["train acc. %"]
  title = f"Blur (Gaussian, {width:.1f} pixels) removed after {half} steps"
  return (
    title,
    headers,
    rows,
    lambda axes: draw_accuracy(axes, records, mark=half),
  )


def switch(lab):
  """Noisy labels are corrected half-way, and the optimizer may change then.

  Each half has a whole anneal of the rate to itself.
  """
  noisy = with_noisy_labels(lab.task.data.train)
  half = half_way(lab)

  def parts(first, second, seed):
    early, late = np.split(lab.rows(seed), [half])
    start = lab.part(first, seed, rows=early, images=noisy, steps=half)
    end = lab.part(second, seed, rows=late, steps=lab.steps - half)
    # One that stays starts afresh too: new moments, new preconditioner.
    return [start, end._replace(restart=True)]

  records, rows = {}, []
  for first in SWITCHED:
    for second in SWITCHED:
      runs = lab.runs(
        f"switch/{first}>{second}",
        [first, second],
        lambda seed, first=first, second=second: parts(first, second, seed),
        look=test_accuracy(lab),
      )
      label = f"{RECIPES[first].label} \u2192 {RECIPES[second].label}"
      records[label] = runs
      rows.append(
        [
          label,
          spread(runs, lambda run: dict(map(tuple, run["history"]))[half]),
          spread(runs, lambda run: run["test"]["accuracy"]),
          number(np.mean([run["train"]["loss"] for run in runs])),
        ]
      )
  headers = ["optimizers", "test acc. % half-way", "at the end", "train loss"]
  title = f"Noisy labels corrected, and optimizers switched, at step {half}"
  return (
    title,
    headers,
    rows,
    lambda axes: draw_accuracy(axes, records, mark=half),
  )


def statistics(lab):
  """Entropy and margin at the end, forgetting on the way, and what is kept.

  An example is forgotten when it was right at one look and is wrong at the
  next; looks are `tuning.CHUNK` steps apart. The quarter of the training set
  that was forgotten most often (ties by how late it was learned) then trains a
  network from scratch, and so does a random quarter.
  """
  train = lab.task.data.train
  labels = np.asarray(train.y)

  def right(step, params):
    del step
    return lenet_lab.logits(params, train.x).argmax(-1) == labels

  def finish(name, seed, params, history):
    found = uncertainty(params, train)
    found |= forgetting(np.array(history), found["entropy"])
    most_forgotten = found.pop("order")[: len(labels) // 4]
    start, _ = lenet_lab.initial(lab.task, seed)
    rng = np.random.default_rng(seed)
    any_quarter = rng.permutation(len(labels))[: len(labels) // 4]
    return {
      **found,
      "history": [],
      "distance": distance(params, lenet_lab.one(start)),
      "forgotten": retrained(lab, name, seed, most_forgotten),
      "random": retrained(lab, name, seed, any_quarter),
    }

  records = {
    name: lab.runs(
      f"statistics/{name}",
      [name],
      lambda seed, name=name: [lab.part(name, seed)],
      look=right,
      finish=lambda *at, name=name: finish(name, *at),
    )
    for name in STUDIED
  }

  def extremes(runs, key):
    values = np.array([run[key] for run in runs])
    ends = values.min(1).mean(), values.mean(), values.max(1).mean()
    return ", ".join(number(x, 2) for x in ends)

  rows = [
    [
      RECIPES[name].label,
      extremes(runs, "entropy"),
      extremes(runs, "margin"),
      number(np.mean([np.mean(run["events"]) for run in runs])),
      spread(runs, lambda run: 100 * run["never_forgotten"]),
      spread(runs, lambda run: run["correlation"], 2),
      spread(runs, lambda run: run["distance"]),
      spread(runs, lambda run: run["forgotten"]),
      spread(runs, lambda run: run["random"]),
    ]
    for name, runs in records.items()
  ]
  headers = ["optimizer", "entropy: min, mean, max", "margin: min, mean, max"]
  headers += ["events", "never forgotten %", "Spearman", "distance"]
  headers += ["test acc. %: most forgotten quarter", "random quarter"]
  title = "Entropy (nats), margin and forgetting on the training set"
  return title, headers, rows, lambda axes: draw_statistics(axes, records)


STUDIES = {
  "noisy-labels": (noisy_labels, 1),
  "imbalance": (imbalance, 1),
  "blur": (blur, 1),
  "switch": (switch, 1),
  "statistics": (statistics, 3),
}


# Data with a defect


def with_noisy_labels(train, share=0.6):
  labels = np.array(train.y)
  rng = np.random.default_rng(1)
  drawn = rng.random(len(labels)) < share
  labels[drawn] = rng.integers(0, CLASSES, drawn.sum())
  return Split(train.x, labels)


def subset(whole, rows):
  return Split(np.asarray(whole.x)[rows], np.asarray(whole.y)[rows])


def blur_images(images, width):
  """A Gaussian of `width` pixels, along rows and along columns."""
  at = np.arange(images.shape[1])
  kernel = np.exp(-((at[:, None] - at) ** 2) / (2 * width**2))
  kernel = (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)
  return np.einsum("ij,njkc,lk->nilc", kernel, images, kernel)


def half_way(lab):
  chunk = tuning.CHUNK
  return max(lab.steps // 2 // chunk, 1) * chunk


# Measures


def test_accuracy(lab):
  def look(step, params):
    return step, lenet_lab.judge(params, lab.task.data.test)["accuracy"]

  return look


def uncertainty(params, split):
  """Entropy of each prediction, and its margin.

  The margin is the probability of the right class less the largest other.
  """
  logs = lenet_lab.log_probabilities(params, split.x)
  p, rows = np.exp(logs), np.arange(len(logs))
  right = p[rows, split.y]
  p_others = p.copy()
  p_others[rows, split.y] = 0
  return {
    "entropy": -np.sum(p * logs, -1),
    "margin": right - p_others.max(-1),
  }


def forgetting(right, entropy):
  """Events of each example from `right`, shape (looks, examples)."""
  from scipy.stats import spearmanr

  events = np.sum(right[:-1] & ~right[1:], 0)
  never_learned = ~right.any(0)
  learned_at = np.where(never_learned, len(right), right.argmax(0))
  # Toneva et al. count what was never learned as forgotten most of all.
  ranked = np.where(never_learned, len(right), events)
  return {
    "events": events,
    "never_forgotten": float(np.mean((events == 0) & ~never_learned)),
    "correlation": float(spearmanr(ranked, entropy).statistic),
    "order": np.lexsort((-learned_at, -ranked)),
  }


def distance(params, start):
  leaves = zip(*map(jax.tree.leaves, (params, start)), strict=True)
  return float(np.sqrt(sum(np.sum(np.square(a - b)) for a, b in leaves)))


def retrained(lab, name, seed, kept):
  """Test accuracy of a network trained on the `kept` examples alone."""
  rows = np.asarray(kept)[lab.rows(seed, examples=len(kept))]
  part = lab.part(name, seed, rows=rows)
  params, _ = lenet_lab.train(lab.task, [part], seed)
  return lenet_lab.judge(params, lab.task.data.test)["accuracy"]


def spread(runs, read, digits=1):
  values = np.array([read(run) for run in runs], float)
  return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"
