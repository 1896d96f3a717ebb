"""The long run: its judgement, and in the slow form every method's verdict."""

import numpy as np
import pytest

from scripts.robustness import soak

T = np.arange(1, soak.TIMES + 1) / soak.TIMES
STILL = {
  "['parameters']['w']": 1 + 0 * T,
  "['state'].learning_rate": 0.1 + 0 * T,
  "['state'].u['w']": 2 + 0 * T,
  "['state'].v['w']": 2 + 0 * T,
  "test loss": 1 + 0 * T,
}


@pytest.mark.parametrize(
  "place, norms, said",
  [
    ("test loss", 1 + 0 * T, "steady"),
    ("test loss", 1 + T, "loss rises"),
    ("['parameters']['w']", np.sqrt(T), "grows: ['parameters']['w']"),
    ("['state'].memory.sum_sq_norms", 1e3 * T, "steady"),
    ("['parameters']['w']", np.where(T < 0.9, 1, np.nan), "not finite"),
    ("['state'].learning_rate", 1e-8 + 0 * T, "rate"),
    ("['state'].u['w']", np.where(T < 0.6, 2, 4.0), "gauge"),
  ],
)
def test_the_verdict_names_what_failed(place, norms, said):
  assert said in soak.judge(STILL | {place: norms}).says()


@pytest.mark.slow
@pytest.mark.parametrize("name", soak.METHODS)
def test_steady_over_20000_steps(name):
  history = soak.run(soak.METHODS[name](), 20_000)
  verdict = soak.judge(history).says()
  if name == "scale_by_gen_paper, momentum":
    assert "rate" in verdict, "its docstring says that it diverges"
  else:
    assert verdict == "steady"
