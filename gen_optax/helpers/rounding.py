"""How many eps count as rounding, and where each multiple comes from."""

# What is left where vectors cancel, relative to them: a few roundings.
CANCELLED = 16
# A decomposition mixes the eigenvectors of eigenvalues that are this close,
# relative to the largest one.
DECOMPOSED = 100
# Between the losses at one point in two places of a compiled program.
RECOMPUTED = 8
# Between the losses that two programs compute: check_value_fn's allowance.
RECOMPILED = 300
# Of a difference of losses. Measured: with 100 the fitted curvature of a real
# network is good to about 10 %.
FITTED = 100.0
