"""ONNX Runtime sessions with the settings of the service, on the device that was asked for or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cloud.errors import DeviceUnavailable, InferenceFailed
from cloud.networks.onnx.graph_file import read_graph

if TYPE_CHECKING:
    import onnxruntime as ort

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
GPU_NODES = ("/dev/nvidiactl", "/dev/dxg")  # of NVIDIA's driver; under WSL


@dataclass(frozen=True)
class Place:
    """Where sessions run. kind: of PROVIDERS; index: of the GPU; threads: of a CPU, None for ONNX Runtime's choice."""

    kind: str = "cpu"
    index: int = 0
    threads: int | None = None

    @property
    def name(self) -> str:
        """ "cpu", "cuda:0" or "tensorrt:0"."""
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"

    @property
    def memory(self) -> tuple[str, int]:
        """Device type and index of tensors there, as ONNX Runtime's bindings have them."""
        return ("cpu", 0) if self.kind == "cpu" else ("cuda", self.index)

    def providers(self, **options: Any) -> list[tuple[str, dict[str, Any]]]:
        own = {} if self.kind == "cpu" else {"device_id": self.index, **options}
        found = [(PROVIDERS[self.kind], own)]
        return [*found, (PROVIDERS["cuda"], own)] if self.kind == "tensorrt" else found


def pick_place(wanted: str, threads: int | None = None) -> Place:
    """`auto`, `cpu`, `cuda[:N]` or `tensorrt[:N]` → a place. `auto` takes CUDA where both GPU and provider are there.

    Raises `DeviceUnavailable` for a provider that is not installed; whether it loads, the first session tells.
    """
    if wanted == "auto":
        wanted = "cuda" if has_provider("cuda") and has_gpu() else "cpu"
    kind, _, index = wanted.partition(":")
    if kind not in PROVIDERS or (index and (kind == "cpu" or not index.isdigit())):
        raise DeviceUnavailable(f"unknown device {wanted!r}: use auto, cpu, cuda[:N] or tensorrt[:N]")
    if not has_provider(kind):
        raise DeviceUnavailable(
            f"--device {wanted}: this onnxruntime was built without {PROVIDERS[kind]}: pip uninstall onnxruntime "
            "onnxruntime-gpu, then pip install 'thinwire[cloud-gpu]'; or use --device cpu"
        )
    return Place(kind, int(index or 0), threads)


def has_provider(kind: str) -> bool:
    """Whether the installed onnxruntime was built with it; False where none is installed."""
    try:
        import onnxruntime as ort
    except ModuleNotFoundError:
        return False
    return PROVIDERS[kind] in ort.get_available_providers()


def has_gpu() -> bool:
    """Whether NVIDIA's driver is here."""
    return any(Path(node).exists() for node in GPU_NODES)


@lru_cache(maxsize=1)
def _load_libraries() -> None:
    """CUDA's and cuDNN's that pip installed (the extra cloud-gpu), where no others are found."""
    import onnxruntime as ort

    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


@dataclass(frozen=True, eq=False)
class Graph:
    """An open graph. weights: what the session reads in place, so that they must live as long; nbytes: of them."""

    session: ort.InferenceSession
    weights: dict[str, np.ndarray]
    nbytes: int

    def run(self, **inputs: np.ndarray) -> np.ndarray:
        """Its one output, on the CPU."""
        return self.session.run(None, inputs)[0]

    def run_there(self, place: Place, **inputs: np.ndarray | ort.OrtValue) -> ort.OrtValue:
        """Its one output, left in the device's memory, from inputs on the CPU or there already."""
        binding = self.session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        binding.bind_output(self.session.get_outputs()[0].name, *place.memory)
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[0]


def open_graph(
    path: Path,
    place: Place,
    weights: Mapping[str, np.ndarray],
    fix: str,
    inputs: Sequence[str] = (),
    **provider_options: Any,
) -> Graph:
    """The graph in `path` with its weights among `weights`. Spin-waiting is off: the next stage needs the cores.

    inputs: that it must take, where that is known; fix: what the user can do instead where the provider does not load.
    Raises `DeviceUnavailable` for that, and `InferenceFailed` for a file that is no graph, or that the weights do not
    fit.
    """
    import onnxruntime as ort

    taken = read_graph(path).take(weights, path)
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if place.threads is not None:
        settings.intra_op_num_threads = place.threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if any(value.dtype == np.float16 for value in taken.values()):  # 1.25 crashes on some in its last level, on a CPU
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if taken:
        values = [ort.OrtValue.ortvalue_from_numpy(value) for value in taken.values()]
        settings.add_external_initializers(list(taken), values)
    if place.kind != "cpu":
        _load_libraries()
    wanted = place.providers(**provider_options)
    try:
        session = ort.InferenceSession(str(path), settings, providers=wanted)
    except Exception as error:  # kinds of its own, which share no base
        text = str(error).splitlines()[0]
        raise InferenceFailed(f"{path}: ONNX Runtime {ort.__version__} cannot open it ({text})") from error
    if session.get_providers()[0] != wanted[0][0]:  # ONNX Runtime lists providers that it cannot load
        raise DeviceUnavailable(
            f"--device {place.name}: onnxruntime cannot load {wanted[0][0]} here: install what it needs (the extra "
            f"cloud-gpu, NVIDIA's driver; TensorRT's libraries for tensorrt), or {fix}"
        )
    takes = [each.name for each in session.get_inputs()]
    if inputs and sorted(takes) != sorted(inputs):
        raise InferenceFailed(f"{path}: takes {', '.join(takes)}, not {', '.join(inputs)}: it is another graph")
    held = sum(value.nbytes for value in taken.values())
    return Graph(session, taken, held or path.stat().st_size)
