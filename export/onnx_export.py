"""Analysis net → ONNX encoder: uint8 view in, int32 symbols out, compared with torch on real images before use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from torch import nn

from export.families.front import normalise
from synthesis.onnx_file import export_onnx
from thinwire.errors import ThinwireError


class ParityError(ThinwireError):
    """The exported encoder does not give the symbols that torch gives."""


class EncoderGraph(nn.Module):
    """The wire's encoder contract around an analysis net: image uint8 (B, H, W, 3) → symbols int32 (B, C, h, w)."""

    def __init__(self, analysis: nn.Module, low: int, high: int) -> None:
        super().__init__()
        self.analysis, self.low, self.high = analysis.eval(), low, high

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        latents = self.analysis(normalise(image.permute(0, 3, 1, 2)))
        return latents.round().clamp(self.low, self.high).to(torch.int32)


def export_encoder(analysis: nn.Module, low: int, high: int, size: int | tuple[int, int], path: Path) -> None:
    """Writes `path` as one self-contained file with a dynamic batch axis. size: of the view, or (height, width)."""
    graph = EncoderGraph(analysis, low, high).eval()
    height, width = (size, size) if isinstance(size, int) else size
    example = {"image": torch.zeros(2, height, width, 3, dtype=torch.uint8)}
    export_onnx(graph, example, "symbols", path)
    onnx.checker.check_model(str(path))


HALF_FROM = 4096  # weights of as many values or more are stored as float16


def round_weights(net: nn.Module) -> None:
    """Rounds the weights that `store_half` will store to float16, so that torch and the file stay the same net."""
    with torch.no_grad():
        for weight in net.parameters():
            if weight.numel() >= HALF_FROM:
                weight.copy_(weight.half())


def store_half(path: Path) -> None:
    """Rewrites `path` with its large weights stored as float16, which a Cast turns back when it loads.

    Half the file; the arithmetic stays float32, so it is no slower (ONNX Runtime folds the casts once).
    """
    model = onnx.load(str(path))
    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size >= HALF_FROM and np.abs(values).max() < 65504:
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
            casts.append(onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path))


def session(path: Path, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def encode_views(path: Path, views: np.ndarray, threads: int = 1, progress=None) -> np.ndarray:
    """uint8 (N, H, W, 3) → int32 symbols (N, C, h, w) by ONNX Runtime."""
    net = session(path, threads)
    out = []
    for start in range(0, len(views), 16):
        out.append(net.run(["symbols"], {"image": np.ascontiguousarray(views[start : start + 16])})[0])
        if progress:
            progress(len(out[-1]))
    return np.concatenate(out)


@dataclass(frozen=True)
class Parity:
    """How far an encoder's symbols are from those that it should give, on real images."""

    images: int
    equal_share: float
    largest_difference: int
    mean_difference: float  # absolute, in symbols


def compare_symbols(wanted: np.ndarray, got: np.ndarray) -> Parity:
    difference = np.abs(got - wanted)
    return Parity(len(got), float((difference == 0).mean()), int(difference.max()), float(difference.mean()))


def check_parity(
    analysis: nn.Module, low: int, high: int, path: Path, views: np.ndarray, floor: float = 0.999, tie: int = 1
) -> Parity:
    """Compares symbols; raises `ParityError` below the share `floor` of equal ones, or when any differs by over `tie`.

    Values a rounding error away from one half may fall either way, so a share below 1 is right.
    """
    graph = EncoderGraph(analysis, low, high)
    with torch.inference_mode():
        wanted = np.concatenate([graph(torch.from_numpy(views[i : i + 16])).numpy() for i in range(0, len(views), 16)])
    parity = compare_symbols(wanted, encode_views(path, views))
    if parity.equal_share < floor or parity.largest_difference > tie:
        raise ParityError(
            f"{path}: {parity.equal_share:.5%} of symbols equal torch's (need {floor:.3%}), "
            f"largest difference {parity.largest_difference}"
        )
    return parity
