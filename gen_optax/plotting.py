"""Pictures of a training run, from plain arrays.

Every function draws on the axes it is given, or on new ones, and returns them;
`axes.figure.savefig(path)` writes the file. matplotlib is imported when a
picture is drawn, so that `import gen_optax` works without it. The pictures are
in one file, because they share colours, axes and scales.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

# The palette of Okabe and Ito, for all common forms of colour blindness; its
# yellow, too faint for lines on white, is left out.
COLOURS = (
  "#0072B2",  # blue
  "#D55E00",  # vermilion
  "#009E73",  # bluish green
  "#CC79A7",  # reddish purple
  "#E69F00",  # orange
  "#56B4E9",  # sky blue
  "#000000",  # black
)


def plot_line(
  steps,
  losses,
  slope: float,
  curvature: float,
  *,
  value: float | None = None,
  learning_rate: float | None = None,
  axes=None,
):
  r"""Draws the loss along the update's direction and the fitted parabola.

  .. math::

    \phi(s) = L(w + s u) \approx L_0 - b s + \tfrac12 A s^2,
    \qquad s^* = b / A

  Args:
    steps: step sizes s along the update u, shape (k,), of any sign and order.
    losses: the loss at each step, shape (k,). Non-finite ones are left out.
    slope: b, the loss saved for each unit of s at s = 0; positive when u points
      downhill.
    curvature: A, the second derivative of the loss with respect to s.
    value: :math:`L_0`, the loss at s = 0; by default that among `losses`, and
      `steps` must contain 0.
    learning_rate: the step size in use, marked by a vertical line.
    axes: matplotlib axes to draw on; by default those of a new figure.

  Returns:
    The axes.

  Raises:
    ImportError: matplotlib is missing.
    ValueError: `value` is not given and no step is 0.

  >>> import numpy as np
  >>> from gen_optax import plotting
  >>> steps = np.linspace(-1, 2, 31)
  >>> losses = 3 - 2 * steps + steps**2 + 0.1 * steps**3
  >>> axes = plotting.plot_line(steps, losses, 2.0, 2.0, value=3.0)
  >>> plotting.close(axes)

  One panel of Figure 2 of the GeN paper (Bu and Xu, 2024); the parabola is
  equation (2.3) with the coefficients of equation (3.4).
  """
  order = np.argsort(np.asarray(steps))
  steps = np.asarray(steps, float)[order]
  losses = np.asarray(losses, float)[order]
  slope, curvature = float(slope), float(curvature)
  if value is None:
    if not np.any(steps == 0):
      raise ValueError(
        "value, the loss at step 0, is not among losses: steps has no 0. Pass "
        "value=value_fn(params) or add 0 to steps."
      )
    value = losses[np.argmin(np.abs(steps))]
  axes = axes if axes is not None else _new_axes()[0]

  fine = np.linspace(steps[0], steps[-1], 201)
  parabola = value - slope * fine + curvature * fine**2 / 2
  marker = "o" if len(steps) <= 40 else None
  axes.plot(steps, losses, color=COLOURS[0], marker=marker, ms=3, label="loss")
  axes.plot(fine, parabola, "--", color=COLOURS[1], label="fitted parabola")
  if learning_rate is not None:
    mark = dict(color="0.5", lw=1, ls=":", label="learning rate")
    axes.axvline(float(learning_rate), **mark)
  optimum = slope / curvature if curvature > 0 else np.inf
  # Drawn outside the probes, it would squeeze the line that was measured.
  if steps[0] <= optimum <= steps[-1]:
    star = dict(color=COLOURS[1], ms=11, label="optimum b/A")
    axes.plot(optimum, value - slope * optimum / 2, "*", **star)
  _fit_height(axes, losses)
  axes.set(xlabel="step size along the update", ylabel="loss")
  axes.legend(frameon=False, fontsize="small")
  return axes


def plot_history(
  losses: Mapping[str, Sequence],
  learning_rates: Mapping[str, Sequence] | None = None,
  *,
  steps=None,
  loss_label: str = "loss",
  axes=None,
):
  """Draws loss and learning rate over time for several runs, with seed bands.

  The line is the median over seeds, and the band goes from the lowest to the
  highest. An axis is logarithmic if its values are positive and span more than
  a decade.

  Args:
    losses: for each name, losses of shape (steps,) or (seeds, steps).
    learning_rates: the same for learning rates, of all or some of the names.
      None draws the losses only.
    steps: the step counts of all runs, shape (steps,); by default 0, 1, 2, ...
    loss_label: what the losses are.
    axes: one for each panel; by default those of a new figure.

  Returns:
    A tuple of axes, (loss,) or (loss, learning rate).

  Raises:
    ImportError: matplotlib is missing.
    ValueError: an array has neither one nor two dimensions.

  >>> import numpy as np
  >>> from gen_optax import plotting
  >>> decay = np.exp(-np.arange(50) / 9) * np.array([[1.0], [1.3], [0.8]])
  >>> axes = plotting.plot_history({"adam": decay}, {"adam": 1e-3 + 0 * decay})
  >>> [panel.get_ylabel() for panel in axes]
  ['loss', 'learning rate']
  >>> plotting.close(axes[0])

  The form of Figures 1, 4 and 9 of the GeN paper (Bu and Xu, 2024).
  """
  panels = [(loss_label, losses)]
  if learning_rates is not None:
    panels.append(("learning rate", learning_rates))
  axes = tuple(axes) if axes is not None else _new_axes(len(panels))
  styles = {name: _style(i) for i, name in enumerate(losses)}

  for panel, (label, runs) in zip(axes, panels, strict=True):
    for name, run in runs.items():
      run = _seeds_by_steps(name, run)
      at = np.arange(run.shape[1]) if steps is None else np.asarray(steps)
      panel.plot(at, np.median(run, 0), label=name, **styles[name])
      if len(run) > 1:
        band = dict(color=styles[name]["color"], alpha=0.2, lw=0)
        panel.fill_between(at, run.min(0), run.max(0), **band)
    _log_where_right(panel, runs.values())
    panel.set(xlabel="step", ylabel=label)
  axes[0].legend(frameon=False, fontsize="small")
  return axes


def plot_trajectories(
  fn,
  trajectories: Mapping[str, Sequence],
  box: Sequence[tuple[float, float]],
  *,
  minimizer: Sequence[float] | None = None,
  styles: Mapping[str, Mapping] | None = None,
  axes=None,
):
  """Draws paths over the contours of a function of two variables.

  The contours are even in the logarithm of the height above the lowest point in
  sight, so that a valley and its walls can both be read.

  Args:
    fn: a JAX function of an array of shape (2,) to a scalar.
    trajectories: for each name, points of shape (steps, 2). Parts outside the
      box and non-finite points are not drawn.
    box: (low, high) for each of the two coordinates.
    minimizer: a point to mark by a star, two floats.
    styles: for some names, arguments of matplotlib's `plot`, over the defaults.
    axes: matplotlib axes to draw on; by default those of a new figure.

  Returns:
    The axes. Costs 40,000 evaluations of `fn`, in one batch.

  Raises:
    ImportError: matplotlib is missing.

  >>> import numpy as np
  >>> from gen_optax import plotting, problems
  >>> beale = problems.beale()
  >>> path = np.linspace(beale.starts[0], beale.minimizer, 20)
  >>> axes = plotting.plot_trajectories(
  ...   beale.fn, {"straight": path}, beale.box, minimizer=beale.minimizer
  ... )
  >>> plotting.close(axes)

  Panels 2 and 4 of Figures 6 and 7 of the GeN paper (Bu and Xu, 2024).
  """
  axes = axes if axes is not None else _new_axes()[0]
  _contours(axes, fn, box)
  starts = set()
  for i, (name, path) in enumerate(trajectories.items()):
    path = np.asarray(path, float)
    style = {**_style(i), "lw": 1.2, **((styles or {}).get(name, {}))}
    axes.plot(path[:, 0], path[:, 1], label=name, **style)
    start = tuple(path[0])
    if start not in starts:
      axes.plot(*start, "o", color="black", ms=4, zorder=4)
      starts.add(start)
  if minimizer is not None:
    star = dict(ms=12, mfc="white", mec="black", zorder=5, ls="none")
    axes.plot(*minimizer, "*", **star)
  labels = dict(xlabel="first coordinate", ylabel="second coordinate")
  axes.set(xlim=box[0], ylim=box[1], **labels)
  axes.legend(frameon=True, framealpha=0.9, fontsize="small")
  return axes


def plot_routing(
  leaf_fractions,
  names: Sequence[str],
  *,
  optimizer: int = 0,
  steps=None,
  axes=None,
):
  """Draws when each leaf was with an optimizer of `amos_router`.

  Leaves are rows, and time runs from left to right; darker means more of the
  leaf's parameters.

  Args:
    leaf_fractions: `state.info.leaf_fractions` of several calls, shape (times,
      leaves, N); `jax.lax.scan` stacks them.
    names: of the leaves, as `leaf_names` gives them.
    optimizer: index of the one to draw.
    steps: the step counts, shape (times,), evenly spaced; by default 0, 1, ...
    axes: matplotlib axes to draw on; by default those of a new figure.

  Returns:
    The axes.

  Raises:
    ImportError: matplotlib is missing.
    ValueError: shapes do not fit.

  >>> import numpy as np
  >>> from gen_optax import plotting
  >>> first = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.25]])
  >>> fractions = np.stack([first, 1 - first], -1)
  >>> axes = plotting.plot_routing(fractions, ["kernel", "bias"])
  >>> [label.get_text() for label in axes.get_yticklabels()]
  ['kernel', 'bias']
  >>> plotting.close(axes)

  What AMOS decides: Alg. 2 of the ELMO paper, by tensors as in its appendix K.
  """
  table = np.asarray(leaf_fractions, float)
  if table.ndim != 3 or table.shape[1] != len(names):
    raise ValueError(
      f"leaf_fractions must have shape (times, {len(names)} names, N), got "
      f"{table.shape}."
    )
  times = np.arange(len(table)) if steps is None else np.asarray(steps)
  if len(times) != len(table):
    raise ValueError(f"steps: got {len(times)} for {len(table)} times.")
  axes = axes if axes is not None else _new_axes()[0]
  half = (times[1] - times[0] if len(times) > 1 else 1) / 2
  extent = (times[0] - half, times[-1] + half, len(names) - 0.5, -0.5)
  colours = dict(cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
  image = axes.imshow(
    table[:, :, optimizer].T, extent=extent, aspect="auto", **colours
  )
  axes.set_yticks(range(len(names)), names, fontsize="x-small")
  axes.set_xlabel("step")
  bar = axes.figure.colorbar(image, ax=axes)
  bar.set_label(f"part with optimizer {optimizer}")
  return axes


def plot_spectrum(
  eigenvalues, lipschitz, *, thresholds=None, converged=None, axes=None
):
  """Draws eigenvalues of a Hessian against their Lipschitz parameters.

  Each eigenspace is a dot, which a line joins to its threshold. The colour says
  what suits it: second order below the threshold, first order above it and
  where the curvature is negative.

  Args:
    eigenvalues: shape (k,), any sign.
    lipschitz: their Lipschitz parameters, shape (k,), at least 0.
    thresholds: of eq. 8, shape (k,): the Lipschitz parameters from which
      Newton's step may raise the loss. None: only dots.
    converged: which eigenvalues are trusted, shape (k,); the others are hollow.
    axes: matplotlib axes to draw on; by default those of a new figure.

  Returns:
    The axes.

  Raises:
    ImportError: matplotlib is missing.
    ValueError: shapes differ.

  >>> from gen_optax import plotting
  >>> axes = plotting.plot_spectrum(
  ...   [9.0, 2.0, -0.5], [1.0, 3.0, 1.0], thresholds=[4.0, 0.5, 0.0]
  ... )
  >>> plotting.close(axes)

  For `gen_optax.curvature_report`; eq. 8 and appendix L of the ELMO paper.
  """
  values, lip = (np.asarray(x, float) for x in (eigenvalues, lipschitz))
  edges = np.full_like(values, np.nan) if thresholds is None else thresholds
  solid = np.ones(values.shape, bool) if converged is None else converged
  edges, solid = np.asarray(edges, float), np.asarray(solid, bool)
  if not values.shape == lip.shape == edges.shape == solid.shape:
    raise ValueError(
      f"plot_spectrum takes arrays of one shape, got {values.shape}, "
      f"{lip.shape}, {edges.shape}, {solid.shape}."
    )
  axes = axes if axes is not None else _new_axes()[0]
  known, above = ~np.isnan(edges), (lip >= edges) | (values <= 0)
  for name, these, colour in (
    ("Lipschitz parameter", ~known, COLOURS[6]),
    ("below the threshold: second order", known & ~above, COLOURS[0]),
    ("above it, or concave: first order", known & above, COLOURS[1]),
  ):
    if not these.any():
      continue
    convex = these & known & (values > 0)
    axes.vlines(values[convex], lip[convex], edges[convex], colour, lw=1)
    axes.plot(values[convex], edges[convex], "_", color=colour, ms=10, mew=1.5)
    for part, fill in ((these & solid, colour), (these & ~solid, "white")):
      style = dict(color=colour, mfc=fill, label=name if part.any() else None)
      axes.plot(values[part], lip[part], "o", **style)
      name = name if not part.any() else None
  if values.size and np.abs(values).max() > 10 * np.abs(values).min():
    axes.set_xscale("symlog", linthresh=max(np.abs(values).max() / 30, 1e-12))
  axes.axvline(0, color="0.8", lw=0.8, zorder=0)
  _log_where_right(axes, [lip[lip > 0], edges[edges > 0]])
  label = "Lipschitz parameter; bar: threshold of eq. 8"
  axes.set(xlabel="eigenvalue", ylabel=label)
  axes.legend(frameon=False, fontsize="small")
  return axes


def leaf_names(tree) -> list[str]:
  """The paths of a tree's leaves, as `plot_routing` takes them.

  Args:
    tree: any tree, such as the parameters.

  Returns:
    A name for each leaf, in the order of `jax.tree.leaves`.

  >>> from gen_optax import plotting
  >>> plotting.leaf_names({"dense": {"kernel": 0, "bias": 0}})
  ['dense/bias', 'dense/kernel']
  """
  return [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree_util.tree_leaves_with_path(tree)
  ]


def close(axes) -> None:
  """Frees the figure that `axes` belongs to; notebooks keep figures alive.

  Args:
    axes: what a function of this module returned.

  >>> from gen_optax import plotting
  >>> plotting.close(plotting.plot_line([0, 1, 2], [2, 1, 2], 2.0, 2.0))
  """
  _pyplot().close(axes.figure)


def _pyplot():
  try:
    import matplotlib.pyplot as plt
  except ImportError as error:
    raise ImportError(
      "gen_optax.plotting draws with matplotlib, which is not installed: "
      "pip install 'gen_optax[demo]'"
    ) from error
  return plt


def _new_axes(panels: int = 1):
  """A tuple of axes side by side in a new figure."""
  _, axes = _pyplot().subplots(
    1, panels, figsize=(4.8 * panels, 3.6), layout="constrained", squeeze=False
  )
  return tuple(axes[0])


def _style(i: int) -> dict:
  """The i-th line style: the colours in turn, then again dashed and dotted."""
  turn, i = divmod(i, len(COLOURS))
  line = ("-", "--", ":", "-.")[turn % 4]
  return {"color": COLOURS[i], "ls": line, "lw": 1.5}


def _seeds_by_steps(name, run) -> np.ndarray:
  run = np.asarray(run, float)
  if run.ndim not in (1, 2):
    raise ValueError(
      f"{name!r} must have shape (steps,) or (seeds, steps), got {run.shape}."
    )
  return np.atleast_2d(run)


def _log_where_right(axes, runs) -> None:
  """A logarithmic axis for positive values that span more than a decade."""
  values = np.concatenate([np.ravel(np.asarray(run, float)) for run in runs])
  values = values[np.isfinite(values)]
  if values.size and values.min() > 0 and values.max() > 10 * values.min():
    axes.set_yscale("log")


def _fit_height(axes, losses) -> None:
  """Limits to what was measured: a poor parabola may leave the picture."""
  finite = losses[np.isfinite(losses)]
  if finite.size and finite.max() > finite.min():
    room = 0.3 * (finite.max() - finite.min())
    axes.set_ylim(finite.min() - room, finite.max() + room)


def _contours(axes, fn, box) -> None:
  x, y = (np.linspace(low, high, 200) for low, high in box)
  points = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
  height = np.asarray(jax.vmap(fn)(jnp.asarray(points))).reshape(200, 200)
  height = height - height.min()
  lowest = np.percentile(height[height > 0], 0.5)
  levels = np.geomspace(lowest, height.max(), 16)
  lines = dict(colors="0.75", linewidths=0.6, zorder=0)
  axes.contour(x, y, height, levels=levels, **lines)
