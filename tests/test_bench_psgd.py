"""What XLA says a PSGD step costs: passes, temporaries, nothing when idle.

Counts of compiled programs, no wall times.
"""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import gen_optax
from gen_optax import psgd
from gen_optax.helpers.lazy import run_if
from scripts.bench import psgd as psgd_costs
from scripts.common import psgd_peer

N = 40_000
RANK = 10
STRUCTURES = {s.name: s for s in psgd_costs.STRUCTURES}


def compiled(structure, action, n=N):
  """The program that the benchmark times, its carry donated."""
  shape = structure.shape(n)
  key = jax.random.PRNGKey(0)
  ours = psgd_costs.our_method(structure, shape, key)
  step = psgd_costs.step_of(ours, action, run_if)
  x = jnp.zeros(shape)
  carry, due = (ours.state, x), jnp.array(True)
  return (
    jax.jit(step, donate_argnums=0, keep_unused=True)
    .lower(carry, due, key, x, x, x)
    .compile()
  )


def temporary_copies(program) -> float:
  return program.memory_analysis().temp_size_in_bytes / (4 * N)


# Pairs: A, B and what a step of two rows at once must keep of the old ones.
TEMPORARIES = {
  "diagonal": (0, 1),
  "xmat": (0, 5),
  "xmat, global step": (0, 5),
  "butterfly": (1, 6),
  "low rank 10": (1, 7.01),
}


@pytest.mark.parametrize("name", TEMPORARIES)
def test_few_vectors_are_held_beside_the_donated_state(name):
  apply, step = (
    temporary_copies(compiled(STRUCTURES[name], action))
    for action in ("apply", "update + apply")
  )
  most_apply, most_step = TEMPORARIES[name]
  assert apply <= most_apply + 0.01
  assert step <= most_step + 0.01


@pytest.mark.parametrize("name", ["xmat", "butterfly", "diagonal"])
def test_an_idle_call_holds_no_copy_of_the_state(name):
  """The loop that updates lazily writes to the donated state."""
  lazy = temporary_copies(compiled(STRUCTURES[name], "1 update in 10"))
  always = temporary_copies(compiled(STRUCTURES[name], "update + apply"))
  assert lazy <= always + 1.01


def test_an_idle_step_writes_its_direction_once():
  """Neither clipped nor withheld, it is left where the caller takes it."""
  make = lambda chance: gen_optax.scale_by_psgd(
    psgd.xmat(), pairs="whitening", probability=chance, clip_norm=None
  )
  step = psgd_costs.whitening_step(make, always=False)
  g = jnp.zeros(N)
  carry = (make(1.0).init(g), g)
  lowered = jax.jit(step, donate_argnums=0, keep_unused=True).lower(
    carry, jnp.array(True), jax.random.PRNGKey(0), g
  )
  text = lowered.compile().as_text()
  entry = text[text.index("ENTRY") :]
  # The average of gradients, and P times it.
  assert len(re.findall(rf" = f32\[{N}\]\S* fusion\(", entry)) == 2


def flops(rank, action):
  structure = STRUCTURES["low rank 10"]._replace(
    preconditioner=psgd.low_rank(rank)
  )
  return compiled(structure, action).cost_analysis()["flops"] / N


def passes(text: str, rank: int) -> int:
  """How often an (r, n) array is read by what is outside of loops."""
  entry = text[text.index("ENTRY") :]
  names = set(re.findall(rf"%([\w.-]+) = f32\[{rank},{N}\]", entry))
  operands = " ".join(re.findall(r" (?:dot|fusion)\(([^)]*)\)", entry))
  return sum(name in names for name in re.findall(r"%([\w.-]+)", operands))


def test_low_rank_reads_its_factors_four_times_to_apply():
  text = compiled(STRUCTURES["low rank 10"], "apply").as_text()
  assert passes(text, RANK) == 4


def test_a_low_rank_update_adds_at_most_eight_reads():
  text = compiled(STRUCTURES["low rank 10"], "update + apply").as_text()
  assert passes(text, RANK) <= 4 + 8


@pytest.mark.parametrize("few, many", [(5, 10), (20, 40)])
def test_the_work_of_a_low_rank_product_is_linear_in_the_rank(few, many):
  """8 operations for each entry of a row: two products with U, two with V."""
  extra = flops(many, "apply") - flops(few, "apply")
  assert extra == pytest.approx(8 * (many - few), rel=0.02)


def outside_of_loops(text: str) -> str:
  """Every computation that is reached without a loop's body."""
  blocks, name = {}, None
  for line in text.splitlines():
    if opening := re.match(r"(ENTRY )?%?([\w.-]+) \(.*{$", line):
      name = "ENTRY" if opening[1] else opening[2]
      blocks[name] = []
    elif name is not None:
      blocks[name].append(line)
  waiting, seen = ["ENTRY"], set()
  while waiting:
    name = waiting.pop()
    seen.add(name)
    body = "\n".join(blocks[name])
    called = re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", body)
    waiting += [other for other in called if other not in seen]
  return "\n".join(line for name in seen for line in blocks[name])


def loss(params):
  return jnp.sum(jnp.sin(params) ** 2)


@pytest.mark.parametrize("pairs", ["hvp", "finite_difference", "whitening"])
@pytest.mark.parametrize("name", ["diagonal", "xmat", "low rank 10"])
def test_idle_calls_draw_nothing_and_differentiate_nothing(name, pairs):
  """Threefry's shifts and the loss's cosine are inside of the loop alone."""
  tx = gen_optax.scale_by_psgd(
    STRUCTURES[name].preconditioner, pairs=pairs, probability=0.1
  )
  params = jnp.zeros(N)

  def step(grad, state, params):
    return tx.update(grad, state, params, value_fn=loss, grad=grad)

  state = tx.init(params)
  text = jax.jit(step).lower(params, state, params).compile().as_text()
  large = re.compile(rf"(f32|u32|s32)\[({N}|{N // 2})\]")
  heavy = re.compile(r"(shift-right-logical|xor|cosine|sine|erf-inv)\(")
  lines = [line for line in text.splitlines() if heavy.search(line)]
  assert any(large.search(line) for line in lines), "nothing to look for"
  outside = outside_of_loops(text).splitlines()
  assert not [
    line for line in outside if heavy.search(line) and large.search(line)
  ]


def test_the_benchmark_takes_psgd_jax_or_goes_without():
  assert psgd_peer.load() is None or psgd_peer.parity(20)


def test_one_step_agrees_with_psgd_jax():
  if psgd_peer.load() is None:
    pytest.skip("psgd_jax is not installed")
  rows = psgd_peer.parity(30)
  assert len(rows) == 8
  for row in rows:
    assert max(row["state"], row["product"]) < 1e-6, row


def test_a_row_of_the_table_has_every_ratio():
  times = {
    "ours": jnp.ones(3),
    "copy": 0.5 * jnp.ones(3),
    "psgd_jax": 3 * jnp.ones(3),
  }
  row = psgd_costs.summary(times, 10)
  assert row["copy"] == [2.0] * 3  # ours over the other's
  assert row["psgd_jax"] == [3.0] * 3  # theirs over ours


@pytest.mark.parametrize("action", psgd_costs.ACTIONS)
@pytest.mark.parametrize("name", ["diagonal", "low rank 10"])
def test_the_timed_program_is_the_preconditioner(name, action):
  structure = STRUCTURES[name]
  key = jax.random.PRNGKey(0)
  v, h, g = jax.random.normal(jax.random.key(1), (3, 20))
  ours = psgd_costs.our_method(structure, (20,), key)
  step = psgd_costs.step_of(ours, action, run_if)
  state, out = step((ours.state, g), jnp.array(True), key, v, h, g)
  if action != "apply":
    expected = structure.preconditioner.update(
      ours.state, v, h, jnp.float32(0.1), key
    )
    difference = optax.tree.norm(optax.tree.sub(state, expected))
    assert difference < 1e-5
  assert jnp.allclose(out, ours.apply(state, g))
