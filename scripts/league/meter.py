"""Counts the work of a traced function while it runs, loops and all.

XLA prices a program without knowing how often its loops turn: the body of a
loop counts once, and a conditional as its dearest branch. Here XLA prices the
straight pieces between loops and branches alone, as they are traced, and the
program itself counts how often each was run. So a fit that is skipped costs
nothing, and a search costs what it took.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

LOOPS = ("scan", "while", "cond")


def metered(fn: Callable) -> Callable:
  """`fn` with the flops that a call of it took as a second output."""

  def with_flops(*args):
    jaxpr, consts, structure = traced(fn, *args)
    out, flops = run(jaxpr, consts, jax.tree.leaves(args))
    return jax.tree.unflatten(structure, out), flops

  return with_flops


def flops_of(fn: Callable, *args) -> float:
  """Flops of one call; loops of unknown length are taken to turn once."""
  jaxpr, _, _ = traced(fn, *args)
  return price(jaxpr)


def traced(fn, *args) -> tuple[Jaxpr, list, jax.tree_util.PyTreeDef]:
  closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
  inputs = [True] * len(closed.jaxpr.invars)
  outputs = [True] * len(closed.jaxpr.outvars)
  # What nobody reads is not run, and not priced.
  jaxpr, _ = dce_jaxpr(closed.jaxpr, outputs, instantiate=inputs)
  return jaxpr, closed.consts, jax.tree.structure(shapes)


def run(jaxpr: Jaxpr, consts, args) -> tuple[list, jax.Array]:
  """Outputs of a jaxpr, and the flops that they took."""
  values = dict(zip(jaxpr.constvars, consts, strict=True))
  values.update(zip(jaxpr.invars, args, strict=True))
  read = lambda x: x.val if isinstance(x, Literal) else values[x]
  flops = jnp.float32(price_of_straight(jaxpr))
  for eqn in jaxpr.eqns:
    inputs = [read(x) for x in eqn.invars]
    inner = loops_within(eqn)
    if inner is not None and not length_is_known(eqn):
      out, more = inner(eqn, inputs)
      flops = flops + more
    else:
      flops = flops + jnp.float32(price_of_loops(eqn))
      taken = [x for x in eqn.invars if not isinstance(x, Literal)]
      piece = piece_of(jaxpr, [eqn], taken)
      out = jaxpr_as_fun(piece)(*(read(x) for x in taken))
    values.update(zip(eqn.outvars, out, strict=True))
  return [read(x) for x in jaxpr.outvars], flops


def piece_of(jaxpr: Jaxpr, eqns, taken) -> ClosedJaxpr:
  """Some equations of a jaxpr alone, from `taken` to all that they make."""
  piece = jaxpr.replace(
    constvars=[],
    invars=list(taken),
    outvars=[x for eqn in eqns for x in eqn.outvars],
    eqns=list(eqns),
  )
  return ClosedJaxpr(piece, [])


# Equations that hold others


def called(eqn) -> ClosedJaxpr | None:
  """What an equation merely calls: a jitted or a differentiable function."""
  for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
    inner = eqn.params.get(name)
    if inner is not None and eqn.primitive.name not in LOOPS:
      return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, [])
  return None


def bodies(eqn) -> list[ClosedJaxpr]:
  kind, params = eqn.primitive.name, eqn.params
  if kind == "scan":
    return [params["jaxpr"]]
  if kind == "while":
    return [params["cond_jaxpr"], params["body_jaxpr"]]
  if kind == "cond":
    return list(params["branches"])
  inner = called(eqn)
  return [] if inner is None else [inner]


def has_loops(jaxpr: Jaxpr) -> bool:
  return any(loops_within(eqn) is not None for eqn in jaxpr.eqns)


def loops_within(eqn) -> Callable | None:
  """How to run an equation that is a loop or a branch, or holds one."""
  if eqn.primitive.name in LOOPS:
    return {"scan": run_scan, "while": run_while, "cond": run_cond}[
      eqn.primitive.name
    ]
  inner = called(eqn)
  if inner is not None and has_loops(inner.jaxpr):
    return run_call
  return None


def length_is_known(eqn) -> bool:
  """Whether neither it nor what it holds depends on data."""
  if eqn.primitive.name in ("while", "cond"):
    return False
  return all(
    length_is_known(inner) for body in bodies(eqn) for inner in body.eqns
  )


# Running them with a count


def run_call(eqn, inputs):
  inner = called(eqn)
  return run(inner.jaxpr, inner.consts, inputs)


def run_scan(eqn, inputs):
  params = eqn.params
  body = params["jaxpr"]
  # Told by shapes: what is scanned over and stacked has one axis more outside.
  # The names of their numbers differ between versions of jax.
  same = lambda outer, inner: outer.aval.ndim == inner.aval.ndim
  kept = sum(map(same, eqn.outvars, body.jaxpr.outvars))
  fixed = sum(map(same, eqn.invars, body.jaxpr.invars)) - kept
  consts = inputs[:fixed]

  def step(carry, xs):
    *carry, flops = carry
    out, more = run(body.jaxpr, body.consts, [*consts, *carry, *xs])
    return (*out[:kept], flops + more), tuple(out[kept:])

  (*carry, flops), ys = jax.lax.scan(
    step,
    (*inputs[fixed : fixed + kept], jnp.float32(0)),
    tuple(inputs[fixed + kept :]),
    length=params["length"],
    reverse=params["reverse"],
    unroll=params["unroll"],
  )
  return [*carry, *ys], flops


def run_while(eqn, inputs):
  params = eqn.params
  cond, body = params["cond_jaxpr"], params["body_jaxpr"]
  of_cond, of_body = params["cond_nconsts"], params["body_nconsts"]
  cond_consts = inputs[:of_cond]
  body_consts = inputs[of_cond : of_cond + of_body]
  test_flops = jnp.float32(price(cond.jaxpr))

  def test(carry):
    return jaxpr_as_fun(cond)(*cond_consts, *carry[:-1])[0]

  def step(carry):
    *carry, flops = carry
    out, more = run(body.jaxpr, body.consts, [*body_consts, *carry])
    return (*out, flops + more + test_flops)

  *out, flops = jax.lax.while_loop(
    test, step, (*inputs[of_cond + of_body :], test_flops)
  )
  return out, flops


def run_cond(eqn, inputs):
  index, *operands = inputs

  def with_flops(branch):
    return lambda *args: run(branch.jaxpr, branch.consts, args)

  branches = [with_flops(branch) for branch in eqn.params["branches"]]
  return jax.lax.switch(index, branches, *operands)


# Prices


def price(jaxpr: Jaxpr) -> float:
  """Flops of one run; loops of unknown length turn once."""
  return price_of_straight(jaxpr) + sum(map(price_of_loops, jaxpr.eqns))


def price_of_loops(eqn) -> float:
  """Flops of an equation that holds loops or branches, 0 of any other."""
  if loops_within(eqn) is None:
    return 0.0
  each = [price(body.jaxpr) for body in bodies(eqn)]
  if eqn.primitive.name == "cond":
    return max(each)
  return sum(each) * eqn.params.get("length", 1)


def price_of_straight(jaxpr: Jaxpr) -> float:
  """XLA's flops of the equations that neither are nor hold loops."""
  eqns = [eqn for eqn in jaxpr.eqns if loops_within(eqn) is None]
  if not eqns:
    return 0.0
  made = {x for eqn in eqns for x in eqn.outvars}
  taken = dict.fromkeys(
    x
    for eqn in eqns
    for x in eqn.invars
    if not isinstance(x, Literal) and x not in made
  )

  straight = jaxpr_as_fun(piece_of(jaxpr, eqns, taken))
  shapes = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in taken]
  cost = jax.jit(straight).lower(*shapes).cost_analysis() or {}
  return float(cost.get("flops", 0.0)) + sum(map(unpriced, eqns))


def unpriced(eqn) -> float:
  """Flops of what is a library call on a CPU, for which XLA counts nothing."""
  if eqn.primitive.name == "triangular_solve":
    right = eqn.outvars[0].aval
    order = eqn.invars[0].aval.shape[-1]
    return float(right.size * order)
  inner = called(eqn)
  return sum(map(unpriced, inner.jaxpr.eqns)) if inner is not None else 0.0
