"""encoder.onnx → encoder.int8.onnx: static int8 (QDQ, u8 activations, s8 weights per channel), checked on symbols.

What was measured on the shipped `conv` encoder, in symbols of 64 photographs equal to fp32's: every convolution in
int8 0.865; all but the first, the patch branch and the last linear layers 0.938; also leaving in float what mixes
the two branches (one scale does not fit both) 0.978; also the first block 0.986, and it is as fast, because the
convolutions between are where the time goes. Min-max calibration beats percentiles (0.916 against 0.938 or, worse, 30 %
more bytes in the first layer: clipped activations shift means) and equals entropy at a fifth of its time. Activations
and additions are quantised too, or each convolution goes through float and back and int8 is slower than fp32.

u8s8 is the fast layout on x86 with VNNI and on ARM. x86 without VNNI adds pairs of products in 16 bits, which may
saturate: parity was not measured on such a machine, so a card should name int8 as its precision only with care.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.onnx_export import Parity, ParityError, compare_symbols, encode_views

FLOOR = 0.97
"""Least share of equal symbols. Rounding noise of 2 % of a step moves 1.4 % of symbols by one; see `edge.precision` of
the card for whether that is worth it."""

QUANTISED = ("Conv", "Add", "Clip", "Relu")
FIRST, LAST = 3, 2  # convolutions left in float at each end, counted along the longest path


class Views(CalibrationDataReader):
    """Pictures (N, ...) in batches, as the input `name`."""

    def __init__(self, views: np.ndarray, batch: int = 8, name: str = "image") -> None:
        self._name = name
        self._batches: Iterator[np.ndarray] = (views[i : i + batch] for i in range(0, len(views), batch))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: np.ascontiguousarray(batch)}


def write_int8(source: Path, target: Path, calibration: np.ndarray) -> None:
    """Writes `target`, the int8 twin of encoder `source`. calibration: uint8 (N, H, W, 3), photographs for the ranges.

    Raises `ParityError` where no convolution lies between those left in float. What it gives is not checked here.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(prepared)
        in_float = float_nodes(model)
        if all(node.name in in_float for node in model.graph.node if node.op_type == "Conv"):
            raise ParityError(f"{source.name} has no convolution between the first {FIRST} and the last {LAST}")
        quantise_graph(prepared, target, Views(calibration), QUANTISED, in_float)


def quantise_encoder(
    source: Path, target: Path, calibration: np.ndarray, views: np.ndarray, floor: float = FLOOR
) -> Parity:
    """Writes `target`, the int8 twin of encoder `source`, and compares the symbols of both.

    calibration, views: uint8 (N, H, W, 3), different photographs for setting the ranges and for judging the result.
    Raises `ParityError`, and leaves no file, when less than `floor` of the symbols of `views` equal those of `source`,
    any differs by more than 1, there is no convolution between those left in float, or ONNX Runtime gives others with
    its graph optimisations than without: its fused int8 kernels have been wrong before.
    """
    write_int8(source, target, calibration)
    got = encode_views(target, views)
    parity = compare_symbols(encode_views(source, views), got)
    plain = compare_symbols(unoptimised(target, views[:16]), got[:16])
    for what, found in (("fp32's", parity), ("its own without graph optimisations", plain)):
        if found.equal_share < floor or found.largest_difference > 1:
            target.unlink()
            raise ParityError(
                f"{target.name}: {found.equal_share:.3%} of symbols equal {what} (need {floor:.1%}), largest "
                f"difference {found.largest_difference} (1 at most): use {source.name}"
            )
    return parity


def quantise_graph(
    prepared: Path, target: Path, views: Views, quantised: Sequence[str], in_float: Sequence[str]
) -> None:
    """Writes `target`, `prepared` (after `quant_pre_process`) in int8, ranges set on `views`.

    quantised: kinds of operators; in_float: names of nodes to leave as they are.
    """
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it advises the pre-processing that was just done
    try:
        quantize_static(
            str(prepared),
            str(target),
            views,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=list(quantised),
            nodes_to_exclude=list(in_float),
        )
    finally:
        root.setLevel(level)
    _drop_unused_domains(target)


def float_nodes(model: onnx.ModelProto, first: int = FIRST, last: int = LAST) -> list[str]:
    """Names of the nodes to leave in float: at most `first` convolutions from the image, or `last` from the symbols.

    The node itself counts. The longest path decides, so that a branch beside the main line is judged where it joins.
    """
    nodes = list(model.graph.node)  # in topological order
    maker = {name: index for index, node in enumerate(nodes) for name in node.output}
    makers = [[maker[name] for name in node.input if name in maker] for node in nodes]
    before, after = ([int(node.op_type == "Conv") for node in nodes] for _ in range(2))
    for index, earlier in enumerate(makers):
        before[index] += max((before[i] for i in earlier), default=0)
    behind = [0] * len(nodes)
    for index in reversed(range(len(nodes))):
        after[index] += behind[index]
        for i in makers[index]:
            behind[i] = max(behind[i], after[index])
    return [node.name for node, b, a in zip(nodes, before, after) if b <= first or a <= last]


def _drop_unused_domains(path: Path) -> None:
    """The pre-processing imports every domain its ONNX Runtime knows; an older one on a device would refuse some."""
    model = onnx.load(path)
    used = {node.domain for node in model.graph.node}
    kept = [each for each in model.opset_import if each.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def unoptimised(path: Path, views: np.ndarray) -> np.ndarray:
    """Symbols as `encode_views` gives them, without ONNX Runtime's graph optimisations."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    net = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([net.run(["symbols"], {"image": views[i : i + 8]})[0] for i in range(0, len(views), 8)])
