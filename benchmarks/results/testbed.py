"""What the numbers were measured on; a number without it means little."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from thinwire.platforms import usable_cores

PACKAGES = (
    "thinwire",
    "numpy",
    "pillow",
    "imagecodecs",
    "onnxruntime",
    "torch",
    "open_clip_torch",
    "grpcio",
)


def describe() -> dict[str, object]:
    """CPU model, usable cores, Python, system and the versions of the packages that do the work."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "thinwire":
            return None
        from thinwire import __version__  # run from a clone that is not installed

        return __version__
