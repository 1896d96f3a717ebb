"""AMOS: optimizers chosen by how fast the curvature changes."""

from gen_optax.amos.paper import PAPER as PAPER
from gen_optax.amos.paper import PAPER_NEWTON as PAPER_NEWTON
from gen_optax.amos.sophia import given_diagonal as given_diagonal
from gen_optax.amos.sophia import sophia as sophia
from gen_optax.amos.sources import CurvaturePoint as CurvaturePoint
from gen_optax.amos.thresholds import Evidence as Evidence
from gen_optax.amos.thresholds import quantiles as quantiles
from gen_optax.oracle.drift import Drift as Drift
