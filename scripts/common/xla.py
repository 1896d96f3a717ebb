"""XLA flags for programs that run once. It imports no jax, which reads them."""

import importlib.util
import mmap
import os
from pathlib import Path

# Most of their time is compilation: LLVM's, and in jaxlib below 0.12 the newer
# of two emitters of fused loops, which alone takes half. XLA's own passes, and
# with them flops, bytes and collectives, stay as they are.
EMITTERS = ("xla_cpu_use_fusion_emitters=false",)
FAST = ("xla_backend_optimization_level=0", *EMITTERS)


def compile_fast(flags: tuple[str, ...] = FAST) -> None:
  """Adds what jaxlib knows of `flags` to `XLA_FLAGS`, before jax is imported.

  Programs that run for long take `EMITTERS` alone.
  """
  given = os.environ.get("XLA_FLAGS", "")
  new = [flag for flag in flags if flag.split("=")[0] not in given]
  new = [f"--{flag}" for flag in new if _is_known(flag.split("=")[0])]
  os.environ["XLA_FLAGS"] = " ".join([given, *new]).strip()


def _is_known(name: str) -> bool:
  """Whether jaxlib has a flag of that name; an unknown one ends the process.

  There is nothing to ask before the flags are read. The library holds each
  name as a C string; between other bytes, it is that of a field long gone.
  """
  folder = importlib.util.find_spec("jaxlib").submodule_search_locations[0]
  files = [path for path in Path(folder).iterdir() if path.is_file()]
  library = max(files, key=lambda path: path.stat().st_size)
  with (
    library.open("rb") as file,
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
  ):
    return content.find(b"\0" + name.encode() + b"\0") >= 0
