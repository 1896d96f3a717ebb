"""ELMO: the minmax step in each eigenspace of the Hessian."""

from gen_optax.elmo.minmax import lower_model as lower_model
from gen_optax.elmo.minmax import minmax_preconditioner as minmax_preconditioner
from gen_optax.elmo.minmax import minmax_step as minmax_step
from gen_optax.elmo.minmax import newton_threshold as newton_threshold
from gen_optax.elmo.minmax import relative_regret as relative_regret
from gen_optax.elmo.minmax import upper_model as upper_model
from gen_optax.elmo.quality import effective_condition as effective_condition
from gen_optax.elmo.quality import eigenspace_residuals as eigenspace_residuals
from gen_optax.elmo.quality import newton_residual as newton_residual
from gen_optax.elmo.quality import (
  preconditioner_regret as preconditioner_regret,
)
from gen_optax.oracle.lanczos import Eigenpairs as Eigenpairs
