"""Everybody who has one setting for all workloads, by name."""

from scripts.league.entrant import Entrant
from scripts.league.ours import OURS
from scripts.league.rivals import RIVALS

ENTRANTS: dict[str, Entrant] = {
  entrant.name: entrant for entrant in RIVALS + OURS
}
