"""ELMO: the minmax step in each eigenspace of the Hessian."""

from gen_optax.elmo.eigen_arc import EigenArcState as EigenArcState
from gen_optax.elmo.eigen_arc import eigen_arc as eigen_arc
from gen_optax.elmo.lipschitz import LipschitzEstimator as LipschitzEstimator
from gen_optax.elmo.lipschitz import adaptive as adaptive
from gen_optax.elmo.lipschitz import constant as constant
from gen_optax.elmo.lipschitz import drift as drift
from gen_optax.elmo.lipschitz import eigenvalue_gradient as eigenvalue_gradient
from gen_optax.elmo.lipschitz import from_function as from_function
from gen_optax.elmo.lipschitz import third_derivative as third_derivative
from gen_optax.elmo.minmax import lower_model as lower_model
from gen_optax.elmo.minmax import minmax_preconditioner as minmax_preconditioner
from gen_optax.elmo.minmax import minmax_step as minmax_step
from gen_optax.elmo.minmax import newton_threshold as newton_threshold
from gen_optax.elmo.minmax import step_regret as step_regret
from gen_optax.elmo.minmax import upper_model as upper_model
from gen_optax.elmo.quality import effective_condition as effective_condition
from gen_optax.elmo.quality import eigenspace_residuals as eigenspace_residuals
from gen_optax.elmo.quality import newton_residual as newton_residual
from gen_optax.elmo.quality import (
  preconditioner_regret as preconditioner_regret,
)
from gen_optax.elmo.quality import relative_regret as relative_regret
from gen_optax.elmo.report import CurvatureReport as CurvatureReport
from gen_optax.elmo.spectrum import Eigenspaces as Eigenspaces
from gen_optax.elmo.spectrum import Spectrum as Spectrum
from gen_optax.elmo.track import TrackLipschitzState as TrackLipschitzState
from gen_optax.oracle.drift import Drift

# Former names.
DriftState = Drift
LipschitzOracle = LipschitzEstimator
