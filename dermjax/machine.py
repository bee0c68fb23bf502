"""The machine, as far as it is known without JAX: its cores, memory and disk, and the processes of a run.

`jax.distributed` is joined where the environment has any of
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID    all three, set by hand
  SLURM_STEP_NUM_TASKS                                             more than 1 (set by srun)
  TPU_WORKER_HOSTNAMES                                             several names (set on a TPU pod)
  DERMJAX_DISTRIBUTED=1                                            let JAX find the others
"""

import atexit
import contextlib
import ctypes
import errno
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dermjax.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a disk, a quota or a limit of file sizes answers
# what a path answers that is not to be read or written, or whose disk is at fault: for its user to mend
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
             errno.ELOOP, errno.EIO, errno.ESTALE)  # fmt: skip
GB = 10**9
GROUPS, OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MEMORY = (  # files of a control group: the most bytes, those used, and the name of those of files among them
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
COORDINATION = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of malloc.h
_programs: list[str] = []  # folders of what this process compiled


def distributed(environment: Mapping[str, str]) -> dict | None:
    """Returns the arguments of `jax.distributed.initialize`, {} to let JAX find them, or None for a single process."""
    given = [name for name in COORDINATION if environment.get(name)]
    if given and len(given) < len(COORDINATION):
        missing = " and ".join(name for name in COORDINATION if name not in given)
        raise UserError(f"{given[0]} is set and {missing} not; set all three or none")
    if given:
        count, index = _whole(environment, "JAX_NUM_PROCESSES"), _whole(environment, "JAX_PROCESS_ID")
        if not 0 <= index < count:
            raise UserError(f"JAX_PROCESS_ID={index}: give 0 to {count - 1}, as JAX_NUM_PROCESSES={count}")
        return {
            "coordinator_address": environment["JAX_COORDINATOR_ADDRESS"],
            "num_processes": count,
            "process_id": index,
            "cluster_detection_method": "deactivate",  # else JAX warns in Kubernetes, and takes one GPU a task on Slurm
        }
    on_slurm = environment.get("SLURM_STEP_NUM_TASKS") and _whole(environment, "SLURM_STEP_NUM_TASKS") > 1
    on_tpu_pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    return {} if on_slurm or on_tpu_pod or environment.get("DERMJAX_DISTRIBUTED") == "1" else None


def cores() -> int:
    """Returns how many cores this process may use: fewer than there are in batch systems and containers.

    These bind a process to some cores, or give it as much time as some have (`docker run --cpus=4`, a pod's limit).
    """
    may = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in control_groups("cpu"):
        quota = _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        if quota and quota[0].isdecimal():  # "max", in version 1 -1, is no limit
            may = min(may, math.ceil(int(quota[0]) / int(quota[1])))
    return may


def control_groups(kind: str) -> list[Path]:
    """Returns the folders of the control groups that limit this process's `kind`, "cpu" or "memory", its own first.

    They are those of version 2 and of version 1 of Linux's cgroups. A container does not see its own by its name on the
    host, which the topmost folder is then.
    """
    groups = []
    for line in OF_PROCESS.read_text().splitlines() if OF_PROCESS.is_file() else ():
        _, kinds, path = line.split(":", 2)
        if not kinds or kind in kinds.split(","):
            top = GROUPS / kind if kinds else GROUPS
            own = top / path.lstrip("/")
            groups += [each for each in (own, *own.parents) if each.is_relative_to(top)]
    return groups


def _words(path: Path) -> list[str]:
    """Returns the words of a file, none where it is not there."""
    return path.read_text().split() if path.is_file() else []


def map_in_threads(function: Callable, items: Iterable, tick: Callable[[], None]) -> Iterator:
    """Yields function(item) of each item in order, computed on all cores, and calls tick after each was used."""
    with ThreadPoolExecutor(cores()) as pool:
        for result in pool.map(function, items):
            yield result
            tick()


def cpu_devices(cores: int) -> int:
    """Returns how many devices JAX should see in the processor: the largest power of two of its cores, at most 8.

    XLA runs the gradient of a convolution on one core, so data parallelism over the cores of one processor trains a
    third faster; a power of two divides the batches of every config. GPUs and TPUs are not affected.
    """
    return min(8, 2 ** (cores.bit_length() - 1))


def free_memory() -> int:
    """Returns the bytes that this process can still take, by the system and by the batch job or container it is in.

    What these count as used holds files that were read, which they give up where memory is asked for.
    """
    have = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if Path("/proc/meminfo").is_file():
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        have.append(int(lines["MemAvailable"].split()[0]) * 1024)
    for group in control_groups("memory"):
        for limit, used, files in MEMORY:
            most, stat = _words(group / limit), _words(group / "memory.stat")
            if most and most[0].isdecimal():
                kept = dict(zip(stat[::2], stat[1::2], strict=True)).get(files, 0)
                have.append(int(most[0]) - int(_words(group / used)[0]) + int(kept))
    return max(0, min(have))


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed instead of giving it back to the system; other C libraries are left alone.

    XLA on a CPU frees and asks anew for its large temporaries in every step. Given back, they return page by page:
    117,000 page faults a second and a sixth of the processor's time while derm-tiny trains. It holds for pieces that
    fit a thread's arena of 64 MB, so `training.step` has XLA ask for smaller ones; one arena for all threads
    (M_ARENA_MAX) keeps larger ones too, and makes derm-tiny's step 1.7 times as long. Not for sampling, which is no
    faster by it and grows: kept pieces of many sizes fit each other ever less, 330 MB in 500 images. Nor for a large
    model, whose arrays of gigabytes fit what was freed least of all: 24 GB for Stable Diffusion's `tune:full`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 2**26)


def release_memory() -> None:
    """Gives the system what `keep_freed_memory` kept; other C libraries than glibc are left alone.

    For where the work changes: what a step keeps does not fit what sampling needs, so that both would be held.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def quiet_compiler(environment: MutableMapping[str, str], *, joined: bool) -> None:
    """Has XLA print errors alone, unless the environment says otherwise: nobody can act on its many warnings.

    Of joined processes it leaves out what ends one of them too, a page for one that is lost: `processes` has the line.
    """
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "4" if joined else "2")


def compile_once(environment: MutableMapping[str, str]) -> None:
    """Has JAX keep what it compiles until this process ends, unless JAX_COMPILATION_CACHE_DIR says where for longer.

    The cells of a study and the classifiers of the demo are the same programs, traced anew for each: compiled once,
    a cell takes 2.4 s of processor time instead of 5. Not for longer, as machines that share a folder may differ in
    their instructions.
    """
    # without room a program is compiled anew, which nobody can mend by knowing it
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
    if "JAX_COMPILATION_CACHE_DIR" not in environment:
        _programs.append(tempfile.mkdtemp(prefix="dermjax-"))
        environment["JAX_COMPILATION_CACHE_DIR"] = _programs[-1]
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")  # in place of 1
        atexit.register(remove_programs)


def remove_programs() -> None:
    """Removes what `compile_once` kept for this process."""
    for folder in _programs:
        shutil.rmtree(folder, ignore_errors=True)


def _whole(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError as error:
        raise UserError(f"{name}={environment[name]}: not a whole number") from error


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Raises UserError where a folder's disk lacks the bytes that `what` needs."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"workdir {folder}: {what} need up to {format_bytes(needed)}, {format_bytes(free)} are free; make room, or "
            "give another --workdir"
        )


def probe_disk(folder: Path, needed: int) -> None:
    """Takes `needed` bytes of a folder's disk and gives them back; OSError, one of DISK_FULL, where they are not there.

    The free bytes that a disk reports know nothing of quotas and limits. Files have 1 GB at most, as some disks need.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        return
    with contextlib.ExitStack() as held:
        for begin in range(0, needed, GB):
            file = held.enter_context(tempfile.TemporaryFile(dir=folder))
            os.posix_fallocate(file.fileno(), 0, min(GB, needed - begin))


def format_bytes(size: float) -> str:
    """Returns a number of bytes for people: `210 MB`."""
    for unit, each in (("GB", GB), ("MB", 1e6)):
        if size >= each:
            return f"{size / each:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"
