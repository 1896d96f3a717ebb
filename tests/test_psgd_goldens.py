"""PSGD: printed values."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from psgd_reference import (
  KEYS,
  SHIFT_BY_THIRD,
  array,
  block_diagonal,
  criterion_of,
  group_gradient,
  jitted,
  low_rank_branches,
  low_rank_gradients,
  low_rank_matrix,
  low_rank_state,
  partition_layout,
  read_blocks,
  read_columns,
  read_low_rank,
  step,
  write_blocks,
  xmat_layout,
)
from running import assert_digits

from gen_optax import psgd, scale_by_psgd

pytestmark = pytest.mark.usefixtures("x64")

# One step at rate 0.1

NUMBERS = dict(
  a=[1, 1.5, 0.8, 1.2],
  b=[0.2, -0.3, 0.1, 0.4],
  v=[1, -1, 0.5, 2],
  h=[0.7, 2, -1.5, 0.3],
)
ODD_NUMBERS = dict(
  a=[1, 1.5, 2, 0.8, 1.2],
  b=[0.2, -0.3, 0, 0.1, 0.4],
  v=[1, -1, 3, 0.5, 2],
  h=[0.7, 2, -0.25, -1.5, 0.3],
)
Q3 = np.array([[1, 0.2, 0], [0.1, 0.9, -0.3], [0, 0.4, 1.1]])
V3, H3 = np.array([1, -2, 0.5]), np.array([3, 1, -0.25])


def pair_step(build, numbers, **options):
  """A golden step of two vectors a and b."""
  a, b, v, h = (np.array(numbers[name]) for name in "abvh")
  preconditioner = build(**options)
  before = psgd.PairState(array(a), array(b))
  after = step(preconditioner.update, before, v, h, 0.1)
  return preconditioner, before, after


XMAT_STEPS = {
  ("second", "entry"): (
    "0.996647696744 1.36415499149 0.786655369869 1.22120737531",
    "0.20012185494 -0.251654340026 0.138038155495 0.407729388096",
  ),
  ("first", "entry"): (
    "0.996367445866 1.35279841663 0.785539765455 1.22298030129",
    "0.200132041952 -0.247612666996 0.141218126298 0.408375561081",
  ),
  ("second", "global"): (
    "0.996928962918 1.3755527091 0.787775015909 1.21942802635",
    "0.200111631022 -0.255710655276 0.134846664257 0.407080874148",
  ),
  ("first", "global"): (
    "0.996630690847 1.36346586345 0.786587673905 1.22131495819",
    "0.200122473098 -0.251409087362 0.138231119228 0.407768598503",
  ),
}


@pytest.mark.parametrize("scope", ["leaf", "global"])
@pytest.mark.parametrize("normalizer, steps", XMAT_STEPS)
def test_golden_xmat(normalizer, steps, scope):
  build = functools.partial(psgd.xmat, scope)
  options = dict(normalizer=normalizer, steps=steps)
  preconditioner, before, after = pair_step(build, NUMBERS, **options)
  a, b = XMAT_STEPS[normalizer, steps]
  assert_digits(after.a, a)
  assert_digits(after.b, b)
  g = array([1, 2, 3, 4])
  assert_digits(preconditioner.apply(before, g), "3.88 3.41 1.45 6.6")
  if (normalizer, steps) == ("second", "entry"):
    assert_digits(
      preconditioner.apply(after, g),
      "3.94904237201 3.05582554295 1.57705559777 6.82295796301",
    )


def test_golden_xmat_reference():
  """The readers and the autodiff gradient that the other tests rely on."""
  _, before, after = pair_step(psgd.xmat, NUMBERS, steps="entry")
  read = functools.partial(read_blocks, [xmat_layout((4,))])
  q, v, h = read(before), *(np.array(NUMBERS[k]) for k in "vh")
  assert_digits(q @ h, "0.76 3.45 -1 0.64")
  back = np.linalg.solve(q.T, v)
  assert_digits(
    back, "0.357142857143 -0.691056910569 0.365853658537 1.60714285714"
  )
  gradient = np.asarray(group_gradient(q, v, h))
  assert_digits(
    np.diagonal(gradient),
    "0.450048979592 11.4249403464 0.866151100535 -2.17330816327",
  )
  assert_digits(
    np.diagonal(gradient[:, ::-1]),
    "-0.0875795918367 -3.19717430101 -3.19717430101 -0.0875795918367",
  )
  assert_digits(criterion_of(q, v, h), "17.2115677368")
  assert_digits(criterion_of(read(after), v, h), "14.8308419889774")


def test_golden_xmat_of_odd_length():
  preconditioner, before, after = pair_step(
    psgd.xmat, ODD_NUMBERS, steps="entry"
  )
  assert_digits(
    after.a,
    "0.996647696744 1.36415499149 2.03231002202 0.786655369869 1.22120737531",
  )
  assert_digits(
    after.b, "0.20012185494 -0.251654340026 0 0.138038155495 0.407729388096"
  )
  assert after.b[2] == 0
  assert_digits(
    preconditioner.apply(before, array([1, 2, 3, 4, 5])),
    "4.56 3.04 12 2.18 8.08",
  )


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_golden_butterfly(scope):
  build = functools.partial(psgd.butterfly, scope)
  preconditioner, before, after = pair_step(build, NUMBERS, steps="entry")
  assert_digits(
    after.a, "1.00886342974 1.36380725885 0.792266312118 1.22313849883"
  )
  assert_digits(
    after.b, "0.208482726445 -0.337617079381 0.107420839636 0.326643298428"
  )
  assert_digits(
    preconditioner.apply(before, array([1, 2, 3, 4])), "1.85 4.94 2.32 6.18"
  )


@pytest.mark.parametrize(
  "options, printed",
  [
    (dict(steps="global"), "0.950769230769 0.548461538462 1.99769230769"),
    (
      dict(steps="global", normalizer="first"),
      "0.949206349206 0.55 1.99761904762",
    ),
    (dict(), "0.92 0.548461538462 1.88"),
  ],
)
def test_golden_diagonal(options, printed):
  state = psgd.DiagonalState(array([1, 0.5, 2]))
  update = psgd.diagonal(**options).update
  after = step(update, state, V3, H3, 0.1)
  assert_digits(after.q, printed)


DENSE_STEP = (
  "0.951158451953 0.156587004304 0.00729157984227 0.0654702374664 "
  "0.912841550994 -0.304629490273 -0.00320936176833 0.400907157451 "
  "1.09963408294"
)


@pytest.mark.parametrize(
  "options, printed",
  [
    (dict(), DENSE_STEP),
    (
      dict(normalizer="first"),
      "0.920556878489 0.129386679371 0.0118601044926 0.0438356843629 "
      "0.920887398881 -0.307530088071 -0.00522018091421 0.401475535123 "
      "1.09940481834",
    ),
    (
      dict(triangular=True),
      "0.949471070523 0.162507971808 0.0131462712622 0 0.924729729096 "
      "-0.303511307928 0 0 1.09981575233",
    ),
  ],
)
def test_golden_dense(options, printed):
  q = np.triu(Q3) if options.get("triangular") else Q3
  update = psgd.dense(**options).update
  after = step(update, psgd.DenseState(array(q)), V3, H3, 0.1)
  assert_digits(after.q.ravel(), printed)


BLOCK_STEPS = {
  "global": "1.0759217575 0.105800746639 -0.010816158203 0.205671777168 "
  "1.00251324676 0.398442069731 -0.0120650591201 -0.303333340181 "
  "1.20118387808",
  "block": "1.03340937857 0.11604250491 -0.0299130925523 0.21568582783 "
  "1.0069506179 0.39569139879 -0.0333670443179 -0.309218662621 "
  "1.20327412506",
}


@pytest.mark.parametrize("steps", BLOCK_STEPS)
@pytest.mark.parametrize(
  "partition",
  [psgd.cyclic(3), psgd.orbits(SHIFT_BY_THIRD)],
  ids=["cyclic", "orbits"],
)
def test_golden_blocks(steps, partition):
  """Two blocks of three, on the entries 0, 2, 4 and 1, 3, 5."""
  order = np.array([0, 2, 4, 1, 3, 5])
  in_blocks = np.argsort(order)
  place = lambda x: array(np.ravel(x)[in_blocks])
  preconditioner = psgd.blocks(partition, steps=steps)
  layouts = [partition_layout(partition)((6,))]
  q = block_diagonal([Q3, Q3.T + 0.1 * np.eye(3)])[np.ix_(in_blocks, in_blocks)]
  blank = preconditioner.init(jnp.zeros(6), KEYS[0])
  state = write_blocks(layouts, blank, q)
  v, h = place([V3, [0.3, 1, -1]]), place([H3, [2, -1, 0.5]])
  after = step(preconditioner.update, state, v, h, 0.1)
  moved = read_blocks(layouts, after)[np.ix_(order, order)]
  assert_digits(moved[:3, :3].ravel(), DENSE_STEP)
  assert_digits(moved[3:, 3:].ravel(), BLOCK_STEPS[steps])
  product = preconditioner.apply(state, place([[1, 2, 3], [4, 5, 6]]))
  assert_digits(product[order], "1.5 2.82 4.21 7.03 6.98 10.12")


LOW_RANK = dict(
  u=np.array([[0.1, 0.2], [-0.3, 0.1], [0.2, -0.2], [0.4, 0], [-0.1, 0.3]]),
  v=np.array([[0.3, -0.1], [0.1, 0.2], [-0.2, 0.4], [0, 0.1], [0.2, 0.2]]),
  d=np.array([1, 0.8, 1.2, 0.5, 1.5]),
)
V5, H5 = np.array([1, -1, 0.5, 2, -0.5]), np.array([0.7, 2, -1.5, 0.3, 1])
LOW_RANK_STEPS = {
  "second": (
    "0.0683096449036 0.201899297979 -0.324187422454 0.0796416621555 "
    "0.239100292191 -0.182943775885 0.315750842093 0.0524091171711 "
    "-0.137659361477 0.288494625966",
    "0.333563145353 -0.113213775155 0.0720214979542 0.190071568714 "
    "-0.19462206434 0.410780700301 0.124828447939 0.0649781498674 "
    "0.199751181675 0.183704960593",
    "0.999143044695 0.798619446774 1.1905054982 0.549011466725 1.48374751022",
  ),
  "first": (
    "0.0520426989939 0.202874224811 -0.336603045175 0.0691915431992 "
    "0.259170825833 -0.174188661774 0.272504987307 0.0793111910544 "
    "-0.156990252351 0.282588813408",
    "0.342007283593 -0.116538223531 0.0649823978777 0.18757367868 "
    "-0.193269031671 0.413493012354 0.156233986949 0.0561670166788 "
    "0.199688581573 0.179605298183",
    "0.999125760396 0.798591601804 1.19031399952 0.55 1.48341970679",
  ),
}


@pytest.mark.parametrize("normalizer", LOW_RANK_STEPS)
def test_golden_low_rank(normalizer):
  update = jitted(psgd.low_rank, 2, normalizer=normalizer)
  state = low_rank_state(jnp.zeros(5), **LOW_RANK)
  after_u, after_v = low_rank_branches(update, state, V5, H5, 0.1)
  u, v, d = LOW_RANK_STEPS[normalizer]
  assert_digits(read_columns(after_u.u, 2).ravel(), u)
  assert_digits(read_columns(after_v.v, 2).ravel(), v)
  assert_digits(after_u.d, d)
  assert_digits(after_v.d, d)
  assert_digits(
    psgd.low_rank(2).apply(state, array([1, 2, 3, 4, 5])),
    "1.70812 1.674944 4.839744 1.36778 13.44636",
  )
  if normalizer == "second":
    after = criterion_of(read_low_rank(after_u), V5, H5)
    assert_digits(after, "23.1408872")


def test_golden_low_rank_reference():
  u, v, d = LOW_RANK.values()
  q = low_rank_matrix(u, v, d)
  assert_digits(q @ H5, "0.772 1.2755 -1.563 0.562 1.3505")
  assert_digits(q.T @ q @ H5, "0.51354 1.138088 -1.268952 0.330985 2.16717")
  back = np.linalg.solve(q.T, V5)
  assert_digits(
    back,
    "0.24378706837 -1.38123567296 1.0934304843 4.05178655896 -0.699377797184",
  )
  assert_digits(
    np.linalg.solve(q, back),
    "0.211275401245 -1.97773339931 1.07021027827 8.52573360461 -0.586713633305",
  )
  gd, gu, gv = low_rank_gradients(u, v, d, V5, H5)
  assert_digits(
    gd,
    "0.148202598755 0.298442600693 1.36832286086 -16.9521717092 1.87381318335",
  )
  assert_digits(
    gu.ravel(),
    "0.830363994151 -0.19142645645 0.616308544572 0.400989540908 "
    "-1.00899004909 -0.250490123459 2.24545026293 -1.69702055248 "
    "0.975747586287 0.117773957826",
  )
  assert_digits(
    gv.ravel(),
    "-0.980281067582 0.898017333907 2.56941613301 0.559822923794 "
    "-1.74173799939 -0.996281077521 -9.8108556285 2.66011223544 "
    "0.928731399313 0.987911154682",
  )
  assert_digits(criterion_of(q, V5, H5), "26.8744854656")


def test_golden_initial_scale():
  """(mean v^2)^{1/4} (mean h^4)^{-1/8} of the golden pair.

  Entries of v are -1 or 1 here, so that h is divided by the root of the golden
  mean v^2 instead.
  """
  tx = scale_by_psgd(
    psgd.diagonal(),
    pairs="whitening",
    vector="rademacher",
    precond_learning_rate=1e-14,
  )
  h = array(H5 / np.sqrt(np.mean(V5**2)))
  _, state = tx.update(h, tx.init(h), h)
  for entry in state.preconditioner.q:
    assert_digits(entry, "0.88571283684")
