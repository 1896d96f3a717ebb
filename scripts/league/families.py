"""The eleven workloads of the league, by name."""

from scripts.league.workload import Family
from scripts.league.workloads import (
  autoencoder,
  clicks,
  digit_lines,
  images,
  kspace,
  molecules,
  records,
  text,
)

FAMILIES: dict[str, Family] = {
  family.name: family
  for family in (
    clicks.FAMILY,
    kspace.FAMILY,
    images.RESNET,
    images.VIT,
    digit_lines.CONFORMER,
    digit_lines.LSTM,
    molecules.FAMILY,
    records.FAMILY,
    text.GPT,
    text.LSTM,
    autoencoder.FAMILY,
  )
}
