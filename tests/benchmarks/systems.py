"""The systems that are compared: what to import and how their threads and caches are set."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class System:
    """A system by its name on the command line.

    `modules` are imported before anything is built. `packages` are the distributions whose versions are reported.
    A peer runs in the Python of `--peer-python`, everything else in the one that runs the benchmarks.
    """

    name: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    is_peer: bool = True


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System("symgrad", ("symgrad",), ("symgrad", "llvmlite"), is_peer=False),
        System("jax", ("jax", "jax.numpy"), ("jax", "jaxlib")),
        System("jax.jet", ("jax", "jax.numpy"), ("jax", "jaxlib")),
        System("torch", ("torch",), ("torch",)),
        System("torch.compile", ("torch",), ("torch",)),
        System("pytensor", ("pytensor", "pytensor.tensor"), ("pytensor", "numba")),
        System("numpy", (), (), is_peer=False),
    )
}


def environment(threads: int, caches: Path, *, cached: bool) -> Mapping[str, str]:
    """The environment of a worker: thread counts, and caches in the given folder or none at all.

    XLA has no documented option for its number of threads; its client reads NPROC and PJRT_NPROC.
    """
    count = str(threads)
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "NUMBA_NUM_THREADS": count,
        "NPROC": count,
        "PJRT_NPROC": count,
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}",
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "SYMGRAD_NUM_THREADS": count,
        "SYMGRAD_CACHE": str(caches / "symgrad") if cached else "off",
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "PYTENSOR_FLAGS": f"base_compiledir={caches / 'pytensor'},floatX=float32,openmp={threads > 1}",
        "NUMBA_CACHE_DIR": str(caches / "numba"),
        "JAX_ENABLE_COMPILATION_CACHE": "true" if cached else "false",
    }
    # An installed package has its bytecode; so has the source tree, once the system has been imported from it.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    if cached:
        variables["JAX_COMPILATION_CACHE_DIR"] = str(caches / "jax")
        variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return variables
