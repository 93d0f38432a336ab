"""`--runtime`: PyTorch or ONNX Runtime for the whole process. The one door from the serving path to torch."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cloud.errors import BadConfiguration, ClipUnavailable

if TYPE_CHECKING:
    from cloud.networks.runtime import Runtime
    from synthesis.variant import DecoderVariant
    from thinwire.bundle import Bundle

log = logging.getLogger(__name__)

RUNTIMES = ("auto", "onnx", "torch")
TORCH = ("torch", "torchvision", "open_clip")
TORCH_PRECISIONS = ("bf16",)  # those that ONNX Runtime's towers are not made in
ONNX_PRECISIONS = ("int8",)


@dataclass(frozen=True)
class Asked:
    """Settings that only one runtime may have. See `cloud.networks.assemble.open_engine`."""

    device: str = "auto"
    threads: int | None = None
    precision: str = "auto"
    clip_backend: str = "auto"
    synthesis_backend: str = "auto"

    @property
    def of_torch(self) -> str | None:
        """The setting that only torch has, as flag and value."""
        for name, value in (("clip-backend", self.clip_backend), ("synthesis-backend", self.synthesis_backend)):
            if value != "auto":
                return f"--{name} {value}"
        return f"--precision {self.precision}" if self.precision in TORCH_PRECISIONS else None

    @property
    def of_onnx(self) -> str | None:
        if self.device.startswith("tensorrt"):
            return f"--device {self.device}"
        return f"--precision {self.precision}" if self.precision in ONNX_PRECISIONS else None


def open_runtime(
    wanted: str, asked: Asked, clips: Sequence[str], bundles: Sequence[Bundle], decoders: Sequence[DecoderVariant]
) -> Runtime:
    """The runtime that `wanted` names: "onnx", "torch", or "auto".

    auto: ONNX Runtime where each CLIP has its artefact, each decoder its graph, and no setting asks for torch, but
    torch on a GPU that it alone can use. Where torch is not installed it is ONNX Runtime, which says what is missing.
    Raises `BadConfiguration` for settings that the runtime does not have, `ClipUnavailable` where torch is asked for
    and not installed, and what the runtime raises.
    """
    if wanted not in RUNTIMES:
        raise BadConfiguration(f"--runtime {wanted!r} is unknown: use one of {', '.join(RUNTIMES)}")
    if wanted == "auto":
        reason = _why_torch(asked, clips, bundles, decoders)
        wanted = "torch" if reason and (has_torch() or asked.of_torch) else "onnx"
        log.info("--runtime auto: %s%s", wanted, f" ({reason})" if reason else "")
    other = asked.of_torch if wanted == "onnx" else asked.of_onnx
    if other:
        raise BadConfiguration(f"{other} is a setting of the other runtime: leave it out, or leave --runtime out")
    if wanted == "onnx":
        from cloud.networks.onnx.runtime import OnnxRuntime

        return OnnxRuntime(asked.device, asked.threads, asked.precision)
    if not has_torch():
        raise ClipUnavailable(
            "--runtime torch needs PyTorch and open_clip, which are not installed: pip install 'thinwire[cloud-torch]'"
        )
    from cloud.networks.torch_runtime import TorchRuntime

    return TorchRuntime(asked.device, asked.threads, asked.precision, asked.clip_backend, asked.synthesis_backend)


def has_torch() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in TORCH)


def _why_torch(
    asked: Asked, clips: Sequence[str], bundles: Sequence[Bundle], decoders: Sequence[DecoderVariant]
) -> str | None:
    """Why torch should serve; None where ONNX Runtime can do it as well or better."""
    if asked.of_onnx:
        return None
    if asked.of_torch:
        return f"{asked.of_torch} asks for it"
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed"
    from cloud.networks.onnx.runtime import why_not
    from cloud.networks.onnx.session import has_gpu, has_provider

    on_gpu = asked.device.startswith("cuda") or (asked.device == "auto" and has_gpu())
    if on_gpu and not has_provider("cuda"):
        return "onnxruntime here has no CUDA provider"
    return why_not(clips, bundles, decoders)
