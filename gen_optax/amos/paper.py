"""The paper's settings of the router."""

from types import MappingProxyType

PAPER = MappingProxyType(
  {
    "granularity": "tensor_mean",
    "threshold": 2e-10,
    "ema": 0.99,
    "bias_correction": False,
    "eps": 1e-12,
  }
)
"""Algorithm 2 with the settings of appendix K, for `amos_router(..., **PAPER)`.

L starts at zero and is not corrected for it. Its mean over a tensor is compared
with one number, which fits no other network or estimator. The optimizers are
not included: the paper takes SGD with learning rate 1.25e-5 and Sophia with
gamma 0.01, learning rate 6e-4, b1 0.9, b2 0.95 and weight decay 0.1. It does
not say when and how it takes the Hessian; `curvature=("state", "nu")` reads the
estimate that Sophia keeps.
"""

PAPER_NEWTON = MappingProxyType(
  {
    "granularity": "tensor_max",
    "threshold": "newton",
    "ema": 0.7,
    "bias_correction": False,
    "eps": 1e-15,
  }
)
"""The second experiment of appendix K: eq. 8 instead of a number (Table 2).

The paper tries `ema` 0.7, 0.8, 0.9, 0.95, 0.99, 0.995 and 0.999, and compares
0.7 with AdamW. It does not say how eq. 8 is aggregated over a tensor; here the
largest L times the mean of |g| is compared with three times the mean of h^2.
"""
