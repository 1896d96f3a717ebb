"""GeN's chains that people type: optimizers without a rate to tune.

All in one file, because each is one call, and people compare them.
"""

from typing import Any

import optax

from gen_optax.averaging import average_parameters
from gen_optax.gen.rule import GenRule
from gen_optax.gen.transform import scale_by_gen
from gen_optax.guards.skip import skip_implausible
from gen_optax.helpers.checks import take_optimizer


def generalized_newton(
  optimizer: optax.GradientTransformation,
  learning_rate: float = 1e-3,
  *,
  average: bool = False,
  **gen_options: Any,
) -> optax.GradientTransformationExtraArgs:
  r"""Turns an optimizer into one that sets its own learning rate (GeN).

  .. math:: w \leftarrow w + \eta_t u_t, \quad
    \eta_t \approx \langle G, -u_t \rangle / \langle u_t, H u_t \rangle

  where u is the optimizer's update. It takes raw gradients, so it goes first
  in a chain, and hands them to `scale_by_gen` as `grad` unless the caller
  passes `grad` (after gradient clipping, say). Gradients that are not finite or
  absurdly long reach neither the optimizer's moments nor the parameters
  (`skip_implausible`).

  Args:
    optimizer: any optax optimizer, built with learning rate 1 and without a
      schedule: `optax.adam(1.0)`.
    learning_rate: where the search for the first rate starts, positive.
      Irrelevant over 1e-6 to 1.
    average: whether to keep the average of `average_parameters`, to evaluate at
      (`evaluate_at`). Nothing that changes the updates may follow then.
    **gen_options: the options of `scale_by_gen`.

  Returns:
    A transformation whose `update` takes `value_fn`, and `value` to save a
    forward pass.

  Raises:
    ValueError: on a wrong option, on a missing `value_fn` or `params`, and in
      `init` on an optimizer with a schedule.

  Cost: that of `scale_by_gen`: one forward pass a step. `average` takes one
  more buffer of the parameters' size.

  Example:

    >>> import jax, jax.numpy as jnp, optax, gen_optax
    >>> loss = lambda w: jnp.sum((w - 3.0) ** 2)
    >>> tx = gen_optax.generalized_newton(optax.adam(1.0))
    >>> w = jnp.zeros(2)
    >>> state = tx.init(w)
    >>> @jax.jit
    ... def step(w, state):
    ...   value, grad = jax.value_and_grad(loss)(w)
    ...   updates, state = tx.update(
    ...     grad, state, w, value=value, value_fn=loss)
    ...   return optax.apply_updates(w, updates), state
    >>> for _ in range(60):
    ...   w, state = step(w, state)
    >>> bool(loss(w) < 0.1)
    True

  References:
    Bu and Xu, Gradient descent with generalized Newton's method, 2024: eq. 3.2.
  """
  take_optimizer("optimizer", optimizer)
  # `optax.inject_hyperparams` hands collected keywords back as one argument.
  gen_options |= gen_options.pop("gen_options", {})
  chained = optax.chain(optimizer, scale_by_gen(learning_rate, **gen_options))

  def init_fn(params):
    state = chained.init(params)
    if optax.tree.get_all_with_path(state, "ScaleByScheduleState"):
      raise ValueError(
        "optimizer follows a schedule of its learning rate, which GeN would "
        "undo: build it with 1, as in optax.adam(1.0), and pass the decay as "
        "horizon=."
      )
    return state

  def update_fn(updates, state, params=None, *, grad=None, **extra_args):
    grad = updates if grad is None else grad
    return chained.update(updates, state, params, grad=grad, **extra_args)

  guarded = skip_implausible(
    optax.GradientTransformationExtraArgs(init_fn, update_fn)
  )
  # Outside the guard: the parameters stay where a step is withheld, which
  # counts, and what makes the optimizer start anew does not reach the average.
  return optax.chain(guarded, average_parameters()) if average else guarded


def gen_sgd(
  learning_rate: float = 1e-3,
  *,
  average: bool = False,
  **gen_options: Any,
) -> optax.GradientTransformationExtraArgs:
  """Gradient descent with GeN's rate: `generalized_newton(optax.sgd(1.0))`.

  Warning: greedy rates are too short for plain SGD on networks, where it ends
  points of accuracy below a tuned rate. Use `gen_momentum` there.

  Args:
    learning_rate: where the search for the first rate starts, positive.
    average: as in `generalized_newton`.
    **gen_options: the options of `scale_by_gen`.

  Returns:
    As `generalized_newton`, at the same cost.

  Raises:
    ValueError: on a wrong option, and on a missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> state = gen_optax.gen_sgd().init(jnp.zeros(2))

  References:
    Bu and Xu, Gradient descent with generalized Newton's method, 2024.
  """
  return generalized_newton(
    optax.sgd(1.0), learning_rate, average=average, **gen_options
  )


def gen_momentum(
  learning_rate: float = 1e-3,
  *,
  momentum: float = 0.9,
  nesterov: bool = False,
  average: bool = False,
  **gen_options: Any,
) -> optax.GradientTransformationExtraArgs:
  """Heavy-ball momentum with GeN's rate.

  Args:
    learning_rate: where the search for the first rate starts, positive.
    momentum: decay of the momentum, in [0, 1).
    nesterov: whether to use Nesterov's form.
    average: as in `generalized_newton`.
    **gen_options: the options of `scale_by_gen`.

  Returns:
    As `generalized_newton`, at the same cost.

  Raises:
    ValueError: on a wrong option, and on a missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> state = gen_optax.gen_momentum().init(jnp.zeros(2))

  References:
    Bu and Xu, Gradient descent with generalized Newton's method, 2024; Polyak,
    Some methods of speeding up the convergence of iteration methods, 1964.
  """
  base = optax.sgd(1.0, momentum=momentum, nesterov=nesterov)
  return generalized_newton(base, learning_rate, average=average, **gen_options)


def gen_adam(
  learning_rate: float = 1e-3,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  average: bool = False,
  **gen_options: Any,
) -> optax.GradientTransformationExtraArgs:
  """Adam with GeN's rate.

  Args:
    learning_rate: where the search for the first rate starts, positive.
    b1, b2, eps: as in `optax.adam`.
    average: as in `generalized_newton`.
    **gen_options: the options of `scale_by_gen`.

  Returns:
    As `generalized_newton`, at the same cost.

  Raises:
    ValueError: on a wrong option, and on a missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> state = gen_optax.gen_adam().init(jnp.zeros(2))

  References:
    Bu and Xu, Gradient descent with generalized Newton's method, 2024; Kingma
    and Ba, Adam, 2015.
  """
  base = optax.adam(1.0, b1=b1, b2=b2, eps=eps)
  return generalized_newton(base, learning_rate, average=average, **gen_options)


def gen_adamw(
  learning_rate: float = 1e-3,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 1e-4,
  mask: Any = None,
  average: bool = False,
  **gen_options: Any,
) -> optax.GradientTransformationExtraArgs:
  """AdamW with GeN's rate; the decay is part of the line that GeN sees.

  Args:
    learning_rate: where the search for the first rate starts, positive.
    b1, b2, eps: as in `optax.adam`.
    weight_decay, mask: as in `optax.adamw`; a multiple of the learning rate.
    average: as in `generalized_newton`.
    **gen_options: the options of `scale_by_gen`.

  Returns:
    As `generalized_newton`, at the same cost.

  Raises:
    ValueError: on a wrong option, and on a missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> state = gen_optax.gen_adamw(weight_decay=1e-2).init(jnp.zeros(2))

  References:
    Bu and Xu, Gradient descent with generalized Newton's method, 2024;
    Loshchilov and Hutter, Decoupled weight decay regularization, 2019.
  """
  base = optax.adamw(
    1.0, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask
  )
  return generalized_newton(base, learning_rate, average=average, **gen_options)


def gen_nadamw(
  learning_rate: float = 1e-3,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 1e-4,
  mask: Any = None,
  average: bool = False,
  **gen_options: Any,
) -> optax.GradientTransformationExtraArgs:
  """AdamW with Nesterov's momentum and GeN's rate.

  Args:
    learning_rate: where the search for the first rate starts, positive.
    b1, b2, eps: as in `optax.nadamw`.
    weight_decay, mask: as in `gen_adamw`.
    average: as in `generalized_newton`.
    **gen_options: the options of `scale_by_gen`.

  Returns:
    As `generalized_newton`, at the same cost.

  Raises:
    ValueError: on a wrong option, and on a missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> state = gen_optax.gen_nadamw().init(jnp.zeros(2))

  References:
    Bu and Xu, Gradient descent with generalized Newton's method, 2024; Dozat,
    Incorporating Nesterov momentum into Adam, 2016.
  """
  base = optax.nadamw(
    1.0, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask
  )
  return generalized_newton(base, learning_rate, average=average, **gen_options)


def gen_lion(
  learning_rate: float = 1e-3,
  *,
  b1: float = 0.9,
  b2: float = 0.99,
  weight_decay: float = 1e-3,
  mask: Any = None,
  average: bool = False,
  **gen_options: Any,
) -> optax.GradientTransformationExtraArgs:
  """Lion with GeN's rate.

  Its direction remembers a hundred gradients and never changes its length, so
  GeN averages over a hundred fits, not over ten: the default rule's `smoothing`
  is `b2`.

  Args:
    learning_rate: where the search for the first rate starts, positive.
    b1, b2, weight_decay, mask: as in `optax.lion`.
    average: as in `generalized_newton`.
    **gen_options: the options of `scale_by_gen`; `rule` is
      `GenRule(smoothing=b2)` unless given.

  Returns:
    As `generalized_newton`, at the same cost.

  Raises:
    ValueError: on a wrong option, and on a missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, gen_optax
    >>> state = gen_optax.gen_lion().init(jnp.zeros(2))

  References:
    Bu and Xu, Gradient descent with generalized Newton's method, 2024; Chen et
    al., Symbolic discovery of optimization algorithms, 2023.
  """
  base = optax.lion(1.0, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask)
  options = {"rule": GenRule(smoothing=b2)} | gen_options
  return generalized_newton(base, learning_rate, average=average, **options)


def gen_muon(
  learning_rate: float = 1e-3,
  *,
  beta: float = 0.95,
  ns_steps: int = 5,
  weight_decay: float = 0.0,
  adam_b1: float = 0.9,
  adam_b2: float = 0.999,
  nesterov: bool = True,
  muon_weight_dimension_numbers: Any = None,
  consistent_rms: float | None = 0.2,
  average: bool = False,
  **gen_options: Any,
) -> optax.GradientTransformationExtraArgs:
  """Muon for matrices and Adam for the rest, with one rate that GeN sets.

  A matrix moves along its orthogonalised momentum, whose size says nothing of
  how far to go beside the rest: `consistent_rms` does. Muon's other options:
  `generalized_newton(optax.contrib.muon(1.0, ...))`.

  Args:
    learning_rate: where the search for the first rate starts, positive.
    beta, ns_steps, nesterov: as in `optax.contrib.muon`. Under
      `optax.inject_hyperparams` name `ns_steps` in `static_args`.
    weight_decay: of what Muon moves; a multiple of the learning rate.
    adam_b1, adam_b2: as `b1` and `b2` in `optax.adam`, for the rest.
    muon_weight_dimension_numbers: as in `optax.contrib.muon`: which axes of a
      leaf are a matrix's rows and columns, None where Adam moves it. By default
      Muon moves the leaves of two axes (a table of embeddings too), and Adam
      all others (a convolution's kernels too).
    consistent_rms: root mean square of a matrix's update at rate 1, about that
      of Adam's (Liu et al.). None: sqrt(max(1, columns / rows)) times the
      orthogonalised momentum.
    average: as in `generalized_newton`.
    **gen_options: the options of `scale_by_gen`.

  Returns:
    As `generalized_newton`, at the same cost and that of Muon: `3 * ns_steps`
    products for each matrix. On an Auto mesh they send what is sharded of it;
    on an Explicit one optax takes matrices that are replicated.

  Raises:
    ValueError: on a wrong option, and on a missing `value_fn` or `params`.

  Example:

    >>> import jax.numpy as jnp, optax, gen_optax
    >>> params = {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.zeros(8)}
    >>> matrix = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    >>> tx = gen_optax.gen_muon(
    ...   muon_weight_dimension_numbers={"kernel": matrix, "bias": None})
    >>> state = tx.init(params)

  References:
    Bu and Xu, Gradient descent with generalized Newton's method, 2024; Jordan
    et al., Muon: an optimizer for hidden layers in neural networks, 2024; Liu
    et al., Muon is scalable for LLM training, 2025: `consistent_rms`.
  """
  base = optax.contrib.muon(
    1.0,
    beta=beta,
    ns_steps=ns_steps,
    weight_decay=weight_decay,
    adam_b1=adam_b1,
    adam_b2=adam_b2,
    nesterov=nesterov,
    muon_weight_dimension_numbers=muon_weight_dimension_numbers,
    consistent_rms=consistent_rms,
  )
  return generalized_newton(base, learning_rate, average=average, **gen_options)
