"""Several simulated accelerators, `sim:0`, `sim:1`, ..., on a machine that has only a CPU.

They refuse what several real accelerators refuse, operands that lie on different devices, and
compute what the CPU computes. They do not simulate streams, races, memory limits, TF32,
peer-to-peer copies, `torch.compile`, autocast, random generators of their own or quantized kernels.

Use them in a process of its own, since a device type cannot be taken back:

    import simulated_accelerators

    simulated_accelerators.load()
    torch.ones(2, device="sim:0") + torch.ones(2, device="sim:1")  # RuntimeError

From then on `sim` is the accelerator of the process, and a bare number as a device (`.to(1)`, or a
device map of accelerate) means one of them. Random numbers come from the CPU's generator. Set
`OMP_NUM_THREADS=1`: on tiny models many threads mostly wait for each other.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import types
from pathlib import Path

import torch

__all__ = ["DEVICE_TYPE", "build", "copied_bytes", "load", "reset_copied_bytes"]

DEVICE_TYPE = "sim"

_SOURCE = Path(__file__).with_name("backend.cpp")
_MEMORY_BYTES = 8 * 2**30  # what each device claims to have; nothing enforces it
_loaded_count: int | None = None


def load(count: int = 4) -> None:
    """Register `count` simulated accelerators with PyTorch, building them first if need be.

    Call it before anything asks torch for its accelerator. A second call with the same count does
    nothing.

    Raises:
        RuntimeError: if they cannot be built, or are loaded already with another count.
    """
    global _loaded_count
    if _loaded_count == count:
        return
    if _loaded_count is not None:
        raise RuntimeError(
            f"{_loaded_count} simulated accelerators are loaded in this process and cannot "
            f"become {count}; start another process"
        )
    if not 1 <= count <= 64:
        raise ValueError(f"count is {count}; it must be between 1 and 64")
    torch.ops.load_library(str(build()))
    torch.ops.simulated_accelerators.set_device_count(count)
    torch.utils.rename_privateuse1_backend(DEVICE_TYPE)
    torch._register_device_module(DEVICE_TYPE, _DeviceModule(count))
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    _loaded_count = count


def copied_bytes() -> int:
    """Bytes copied between two devices, the host being one, since the start or the last reset.

    Counts `.to()`, `copy_()`, `.item()` and indices that an accelerator fetches from the CPU, each
    in the dtype in which it arrives. Copies within a device do not count.
    """
    return torch.ops.simulated_accelerators.copied_bytes()


def reset_copied_bytes() -> None:
    """Start `copied_bytes` again at 0."""
    torch.ops.simulated_accelerators.reset_copied_bytes()


def build() -> Path:
    """Compile `backend.cpp`, unless this source was compiled before for this torch and Python.

    Returns:
        The shared library, in the folder that the environment variable
        SIMULATED_ACCELERATORS_CACHE names (default: `easyedit-mend-parallel` in the user's cache).

    Raises:
        RuntimeError: if g++ is missing or fails.
    """
    identity = _SOURCE.read_bytes() + f"{torch.__version__} {sys.version}".encode()
    folder = _cache_folder()
    library = folder / f"simulated-accelerators-{hashlib.sha256(identity).hexdigest()[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    # Several processes may build at once; each writes its own file, and the last rename wins.
    unfinished = library.with_suffix(f".{os.getpid()}.unfinished")
    try:
        _compile(unfinished)
        unfinished.replace(library)
    finally:
        unfinished.unlink(missing_ok=True)
    return library


def _cache_folder() -> Path:
    chosen = os.environ.get("SIMULATED_ACCELERATORS_CACHE")
    if chosen:
        return Path(chosen)
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache) / "easyedit-mend-parallel"


def _compile(library: Path) -> None:
    torch_folder = Path(torch.__file__).parent
    command = [
        "g++",
        "-std=c++20",
        "-O1",
        "-w",  # torch's headers warn
        "-fPIC",
        "-shared",
        f"-I{torch_folder}/include",
        f"-I{torch_folder}/include/torch/csrc/api/include",
        str(_SOURCE),
        "-o",
        str(library),
        f"-L{torch_folder}/lib",
        f"-Wl,-rpath,{torch_folder}/lib",
        "-ltorch_cpu",
        "-lc10",
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError(
            "g++ was not found; the simulated accelerators are compiled with it "
            "(Debian, Ubuntu: apt-get install g++)"
        ) from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"g++ could not compile {_SOURCE}:\n{error.stderr[-4000:]}") from error


class _DeviceModule(types.ModuleType):
    """`torch.sim`: what torch, accelerate and transformers ask of a device type's own module."""

    def __init__(self, count: int) -> None:
        super().__init__(f"torch.{DEVICE_TYPE}")
        self._count = count

    def device_count(self) -> int:
        return self._count

    class device:  # spelled as torch.cuda.device is
        """Context manager that makes another device the current one."""

        def __init__(self, device: int | str | torch.device) -> None:
            self._index = _index_of(device)

        def __enter__(self) -> None:
            self._previous = torch.accelerator.current_device_index()
            torch.accelerator.set_device_index(self._index)

        def __exit__(self, *_: object) -> None:
            torch.accelerator.set_device_index(self._previous)

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def _lazy_init() -> None:
        pass

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def current_device() -> int:
        return torch.accelerator.current_device_index()

    @staticmethod
    def set_device(device: int | str | torch.device) -> None:
        torch.accelerator.set_device_index(_index_of(device))

    @staticmethod
    def get_device_name(device: object = None) -> str:
        return "simulated accelerator"

    @staticmethod
    def synchronize(device: object = None) -> None:
        pass

    @staticmethod
    def empty_cache() -> None:
        pass

    @staticmethod
    def mem_get_info(device: object = None) -> tuple[int, int]:
        return _MEMORY_BYTES, _MEMORY_BYTES

    @staticmethod
    def memory_allocated(device: object = None) -> int:
        return 0

    @staticmethod
    def memory_reserved(device: object = None) -> int:
        return 0

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass  # torch.manual_seed has seeded the CPU's generator, which serves the devices too

    @staticmethod
    def get_rng_state(device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(state.cpu())

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        # transformers switches autocast off for a while, and torch asks even then. With it on, the
        # first operator raises; an empty list here would only warn.
        return [torch.bfloat16, torch.float16]


def _index_of(device: int | str | torch.device) -> int:
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return torch.accelerator.current_device_index() if index is None else index
