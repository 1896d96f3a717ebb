"""Optax optimizers that set their own learning rate and use curvature.

Every transformation reads one closure, the loss as a function of the
parameters alone, as optax's line searches do:

    tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)

`make_step` builds it from a loss function.

Optimizers that set their own learning rate (GeN)
  gen_sgd, gen_momentum, gen_adam, gen_adamw, gen_lion
  generalized_newton      any optimizer, without a rate
  scale_by_gen            the stage behind a complete optimizer
  scale_by_gen_paper      the paper's rule to the letter
  skip_implausible        keeps absurd gradients out of moments
  average_parameters, averaged_parameters
                          evaluation at an average

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

from gen_optax import amos as amos
from gen_optax import elmo as elmo
from gen_optax import problems as problems
from gen_optax import psgd as psgd
from gen_optax.alias import gen_adam as gen_adam
from gen_optax.alias import gen_adamw as gen_adamw
from gen_optax.alias import gen_lion as gen_lion
from gen_optax.alias import gen_momentum as gen_momentum
from gen_optax.alias import gen_sgd as gen_sgd
from gen_optax.alias import generalized_newton as generalized_newton
from gen_optax.amos.transform import AmosInfo as AmosInfo
from gen_optax.amos.transform import AmosRouterState as AmosRouterState
from gen_optax.amos.transform import amos_router as amos_router
from gen_optax.averaging import average_parameters as average_parameters
from gen_optax.averaging import averaged_parameters as averaged_parameters
from gen_optax.elmo.alias import elmo_dense as elmo_dense
from gen_optax.elmo.alias import elmo_lanczos as elmo_lanczos
from gen_optax.elmo.report import curvature_report as curvature_report
from gen_optax.elmo.track import track_lipschitz as track_lipschitz
from gen_optax.elmo.transform import ElmoInfo as ElmoInfo
from gen_optax.elmo.transform import ScaleByElmoState as ScaleByElmoState
from gen_optax.elmo.transform import scale_by_elmo as scale_by_elmo
from gen_optax.gen.guard import skip_implausible as skip_implausible
from gen_optax.gen.paper import ScaleByGenPaperState as ScaleByGenPaperState
from gen_optax.gen.paper import scale_by_gen_paper as scale_by_gen_paper
from gen_optax.gen.stage import GenInfo as GenInfo
from gen_optax.gen.transform import ScaleByGenState as ScaleByGenState
from gen_optax.gen.transform import scale_by_gen as scale_by_gen
from gen_optax.oracle.closures import average_over as average_over
from gen_optax.oracle.closures import check_value_fn as check_value_fn
from gen_optax.oracle.closures import keep_extra_args as keep_extra_args
from gen_optax.oracle.closures import rename_extra_args as rename_extra_args
from gen_optax.oracle.closures import with_full_params as with_full_params
from gen_optax.oracle.diagonal import (
  gauss_newton_bartlett_diagonal as gauss_newton_bartlett_diagonal,
)
from gen_optax.oracle.diagonal import hutchinson_diagonal as hutchinson_diagonal
from gen_optax.oracle.hessian import eigenvalue_gradient as eigenvalue_gradient
from gen_optax.oracle.hessian import hvp as hvp
from gen_optax.oracle.lanczos import Eigenpairs as Eigenpairs
from gen_optax.oracle.lanczos import extreme_eigenpairs as extreme_eigenpairs
from gen_optax.oracle.line import third_derivative as third_derivative
from gen_optax.psgd.alias import psgd_butterfly as psgd_butterfly
from gen_optax.psgd.alias import psgd_dense as psgd_dense
from gen_optax.psgd.alias import psgd_diagonal as psgd_diagonal
from gen_optax.psgd.alias import psgd_kron as psgd_kron
from gen_optax.psgd.alias import psgd_lra as psgd_lra
from gen_optax.psgd.alias import psgd_xmat as psgd_xmat
from gen_optax.psgd.transform import PsgdInfo as PsgdInfo
from gen_optax.psgd.transform import ScaleByPsgdState as ScaleByPsgdState
from gen_optax.psgd.transform import scale_by_psgd as scale_by_psgd
from gen_optax.training import StepResult as StepResult
from gen_optax.training import make_step as make_step
from gen_optax.training import metrics as metrics


def __getattr__(name):
  """Imports the modules that need an extra when they are first used."""
  if name in ("flax_training", "plotting"):
    return importlib.import_module(f"gen_optax.{name}")
  raise AttributeError(f"module 'gen_optax' has no attribute {name!r}")
