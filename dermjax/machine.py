"""What a process makes of its machine before JAX is there: its devices, its compiler, and the processes beside it.

`jax.distributed` is joined where the environment asks for it, which is any of
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID    all three, said by hand
  SLURM_STEP_NUM_TASKS                                             more than 1 (set by srun)
  TPU_WORKER_HOSTNAMES                                             several names (set on a TPU pod)
  DERMJAX_DISTRIBUTED=1                                            let JAX find the others
"""

import atexit
import importlib.metadata
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, MutableMapping

from dermjax.errors import UserError

COORDINATION = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
YNN_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"


def distributed(environment: Mapping[str, str]) -> dict | None:
    """Returns the arguments of `jax.distributed.initialize`, {} to let JAX find them, or None for a single process."""
    given = [name for name in COORDINATION if environment.get(name)]
    if given and len(given) < len(COORDINATION):
        missing = " and ".join(name for name in COORDINATION if name not in given)
        raise UserError(f"{given[0]} is set and {missing} not; set all three or none")
    if given:
        count, index = _whole(environment, "JAX_NUM_PROCESSES"), _whole(environment, "JAX_PROCESS_ID")
        return {
            "coordinator_address": environment["JAX_COORDINATOR_ADDRESS"],
            "num_processes": count,
            "process_id": index,
        }
    on_slurm = environment.get("SLURM_STEP_NUM_TASKS") and _whole(environment, "SLURM_STEP_NUM_TASKS") > 1
    on_tpu_pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    return {} if on_slurm or on_tpu_pod or environment.get("DERMJAX_DISTRIBUTED") == "1" else None


def cores() -> int:
    """Returns how many cores this process may use, which batch systems and containers make fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_devices(cores: int) -> int:
    """Returns how many devices JAX should see in the processor: the largest power of two of its cores, at most 8.

    For sampling, which is a quarter faster with a part of the batch on each core; a power of two divides the batches of
    every config. Training takes one device, which has all cores (`sharding.mesh`). GPUs and TPUs are not affected.
    """
    return min(8, 2 ** (cores.bit_length() - 1))


def quick_convolutions(environment: MutableMapping[str, str]) -> None:
    """Has XLA make convolutions on a CPU with Eigen and sums with YNNPACK, unless XLA_FLAGS say otherwise.

    jaxlib 0.10 makes both with YNNPACK, whose convolutions leave all cores but one idle for large images and whose
    gradients by the kernel are a third to a quarter as fast. Other releases may not know the flag, and XLA ends a
    process for a flag that it does not know.
    """
    given = environment.get("XLA_FLAGS", "")
    if importlib.metadata.version("jaxlib").startswith("0.10.") and YNN_FUSIONS not in given:
        environment["XLA_FLAGS"] = f"{given} --{YNN_FUSIONS}=LIBRARY_FUSION_TYPE_REDUCE".strip()


def compile_once(environment: MutableMapping[str, str]) -> None:
    """Has JAX keep what it compiles until this process ends, unless JAX_COMPILATION_CACHE_DIR says where for longer.

    The cells of a study and the classifiers of the demo are the same programs, traced anew for each: compiled once,
    a cell takes 2.4 s of processor time instead of 5. Not for longer, as machines that share a folder may differ in
    their instructions.
    """
    # without room a program is compiled anew, which nobody can mend by knowing it
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
    if "JAX_COMPILATION_CACHE_DIR" not in environment:
        environment["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dermjax-")
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")  # in place of 1
        atexit.register(shutil.rmtree, environment["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def _whole(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError as error:
        raise UserError(f"{name}={environment[name]}: not a whole number") from error
