"""Two processes, stopped and restarted, end where one process does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = "scripts.robustness.two_process"


@pytest.mark.slow
def test_two_processes_end_where_one_does(tmp_path):
  command = [sys.executable, "-m", SCRIPT, "--quick", "--out", tmp_path]
  done = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, timeout=900
  )
  assert done.returncode == 0, done.stderr
  record = json.loads((tmp_path / "two_process.json").read_text())
  assert [row["optimizer"] for row in record["rows"]] == [
    "GeN-AdamW",
    "PSGD-XMat",
  ]
  for row in record["rows"]:
    assert row["last loss"] < row["first loss"]
    assert row["between processes"] <= 1e-9
    assert row["from one process"] <= 1e-9
