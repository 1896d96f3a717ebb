"""Optax optimizers that set their own learning rate and use curvature.

Every transformation reads one closure, the loss as a function of the
parameters alone, as optax's line searches do:

    tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)

`make_step` builds it from a loss function.

Optimizers that set their own learning rate (GeN)
  gen_sgd, gen_momentum, gen_adam, gen_adamw, gen_nadamw, gen_lion, gen_muon
  generalized_newton      any optimizer, without a rate
  scale_by_gen            the stage after a complete optimizer
  GenRule                 the constants of its rule
  greedy                  the rule for losses without noise
  scale_by_gen_paper      the paper's rule to the letter
  skip_implausible        keeps absurd gradients out of moments
  average_parameters, averaged_parameters, evaluate_at
                          evaluation at an average, with any optimizer

Preconditioners on Lie groups, fitted online (PSGD)
  psgd_diagonal, psgd_xmat, psgd_butterfly, psgd_lra, psgd_dense, psgd_kron
  scale_by_psgd           the stage; structures are in `psgd`

The minmax step in each eigenspace of the Hessian (ELMO)
  elmo_dense              exact, for few parameters
  elmo_lanczos            the extreme eigenspaces by Lanczos
  scale_by_elmo           the stage; its pieces are in `elmo`
  track_lipschitz         Lipschitz parameters along any optimizer's path
  curvature_report        what the curvature says of first and second order

A router of several optimizers (AMOS)
  amos_router             each part to the optimizer that suits its curvature
                          (Sophia and the paper's settings are in `amos`)

Training
  make_step               a jitted step from a loss function
  metrics                 what the stages report, for a logger
  flax_training           linen and nnx

The closure: its check, its adapters, what it can be asked
  check_value_fn          before the first step
  with_full_params        for stages inside optax.masked, optax.partition
  keep_extra_args, rename_extra_args
                          beside stages that are strict, or name it otherwise
  average_over            the mean over a mapped axis
  hvp, third_derivative, extreme_eigenpairs, eigenvalue_gradient,
  hutchinson_diagonal, gauss_newton_bartlett_diagonal

problems                  test functions with their minima
plotting                  pictures of a run

States and what they report: ScaleByGenState, ScaleByGenPaperState, GenInfo,
ScaleByPsgdState, PsgdInfo, ScaleByElmoState, ElmoInfo, AmosRouterState,
AmosInfo, Eigenpairs, StepResult.
"""

import importlib

from gen_optax import amos, elmo, problems, psgd
from gen_optax.amos.transform import AmosInfo, AmosRouterState, amos_router
from gen_optax.averaging import (
  average_parameters,
  averaged_parameters,
  evaluate_at,
)
from gen_optax.elmo.alias import elmo_dense, elmo_lanczos
from gen_optax.elmo.report import curvature_report
from gen_optax.elmo.track import track_lipschitz
from gen_optax.elmo.transform import ElmoInfo, ScaleByElmoState, scale_by_elmo
from gen_optax.gen.alias import (
  gen_adam,
  gen_adamw,
  gen_lion,
  gen_momentum,
  gen_muon,
  gen_nadamw,
  gen_sgd,
  generalized_newton,
)
from gen_optax.gen.greedy import greedy
from gen_optax.gen.paper import ScaleByGenPaperState, scale_by_gen_paper
from gen_optax.gen.rule import GenRule
from gen_optax.gen.stage import GenInfo
from gen_optax.gen.state import ScaleByGenState
from gen_optax.gen.transform import scale_by_gen
from gen_optax.guards.skip import skip_implausible
from gen_optax.oracle.closures import (
  average_over,
  check_value_fn,
  keep_extra_args,
  rename_extra_args,
  with_full_params,
)
from gen_optax.oracle.diagonal import (
  gauss_newton_bartlett_diagonal,
  hutchinson_diagonal,
)
from gen_optax.oracle.hessian import eigenvalue_gradient, hvp
from gen_optax.oracle.lanczos import Eigenpairs, extreme_eigenpairs
from gen_optax.oracle.line import third_derivative
from gen_optax.psgd.alias import (
  psgd_butterfly,
  psgd_dense,
  psgd_diagonal,
  psgd_kron,
  psgd_lra,
  psgd_xmat,
)
from gen_optax.psgd.transform import PsgdInfo, ScaleByPsgdState, scale_by_psgd
from gen_optax.training import StepResult, make_step, metrics

# Not flax_training: a star-import must not need Flax.
__all__ = [
  "AmosInfo",
  "AmosRouterState",
  "Eigenpairs",
  "ElmoInfo",
  "GenInfo",
  "GenRule",
  "PsgdInfo",
  "ScaleByElmoState",
  "ScaleByGenPaperState",
  "ScaleByGenState",
  "ScaleByPsgdState",
  "StepResult",
  "amos",
  "amos_router",
  "average_over",
  "average_parameters",
  "averaged_parameters",
  "check_value_fn",
  "curvature_report",
  "eigenvalue_gradient",
  "elmo",
  "elmo_dense",
  "elmo_lanczos",
  "evaluate_at",
  "extreme_eigenpairs",
  "gauss_newton_bartlett_diagonal",
  "gen_adam",
  "gen_adamw",
  "gen_lion",
  "gen_momentum",
  "gen_muon",
  "gen_nadamw",
  "gen_sgd",
  "generalized_newton",
  "greedy",
  "hutchinson_diagonal",
  "hvp",
  "keep_extra_args",
  "make_step",
  "metrics",
  "plotting",
  "problems",
  "psgd",
  "psgd_butterfly",
  "psgd_dense",
  "psgd_diagonal",
  "psgd_kron",
  "psgd_lra",
  "psgd_xmat",
  "rename_extra_args",
  "scale_by_elmo",
  "scale_by_gen",
  "scale_by_gen_paper",
  "scale_by_psgd",
  "skip_implausible",
  "third_derivative",
  "track_lipschitz",
  "with_full_params",
]


def __getattr__(name):
  """Imports the modules that need an extra when they are first used."""
  if name in ("flax_training", "plotting"):
    return importlib.import_module(f"gen_optax.{name}")
  raise AttributeError(f"module 'gen_optax' has no attribute {name!r}")
