"""PSGD: preconditioners on Lie groups, fitted online."""

from gen_optax.psgd.blocks import BlocksState as BlocksState
from gen_optax.psgd.blocks import DiagonalState as DiagonalState
from gen_optax.psgd.blocks import PairState as PairState
from gen_optax.psgd.blocks import blocks as blocks
from gen_optax.psgd.blocks import butterfly as butterfly
from gen_optax.psgd.blocks import diagonal as diagonal
from gen_optax.psgd.blocks import xmat as xmat
from gen_optax.psgd.dense import DenseState as DenseState
from gen_optax.psgd.dense import dense as dense
from gen_optax.psgd.kron import KronState as KronState
from gen_optax.psgd.kron import kron as kron
from gen_optax.psgd.low_rank import LowRankState as LowRankState
from gen_optax.psgd.low_rank import low_rank as low_rank
from gen_optax.psgd.partitions import cyclic as cyclic
from gen_optax.psgd.partitions import neighbours as neighbours
from gen_optax.psgd.partitions import orbits as orbits
from gen_optax.psgd.preconditioner import Preconditioner as Preconditioner
