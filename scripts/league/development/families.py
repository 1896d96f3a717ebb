"""Eleven small tasks on which rules may be chosen; the league is not for that.

They differ in what a rule can stumble over: batches of two, rare rows, dropout
on full batches, a saddle, a residual of derivatives, ill conditions. What is
held back is one set for both readings of a loss.
"""

from scripts.league.development import characters, clicks, digits, small
from scripts.league.workload import Family

FAMILIES: dict[str, Family] = {
  family.name: family
  for part in (digits, clicks, characters, small)
  for family in part.TASKS
}
