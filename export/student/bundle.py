"""A distilled student → a bundle of family `embedding`: ONNX in fp32 and int8, with how far their answers agree."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.embedding_bundle import Coded, bundle_name, code_tower, write_embedding_bundle
from export.onnx_export import ParityError, encode_views
from export.quantise import unoptimised, write_int8
from export.student.distil import Distilling
from export.student.network import load_student
from export.towers import Tower

JUDGED = 256  # photographs on which answers are compared, and as many others for the ranges of int8
NAMES = 1000  # class names: the first of the texts by which answers are compared; captions, the others, are too alike
FLOOR = 0.99
"""Least mean cosine of int8's vectors with fp32's. Answers among 1000 names are stated, but decide nothing: many are as
good as equal there. Lite0 at 128 pixels has 0.997 and 82 % of equal answers; a graph that went wrong had 0.84."""


def make_student_bundle(run: Distilling, out: Path, count: int = 3000) -> Path:
    """Writes bundle `out` of a finished run; axes, steps and tables come from `count` of its photographs.

    Raises `ParityError` when the encoder does not give torch's vectors.
    """
    settings = run.settings
    net = load_student(
        settings.backbone, settings.size, run.targets.dim
    )  # as it was made: the run's is made for training
    net.load_state_dict(run.net.state_dict())
    tower = Tower(
        id=f"student of {run.teacher.id}",
        net=net.eval().requires_grad_(False),
        height=settings.size,
        width=settings.size,
        mean=_stated(net.shift, net.scale)[0],
        std=_stated(net.shift, net.scale)[1],
    )
    coded = code_tower(tower, run.photographs, count)
    last = run.held_out()

    def finish(encoder: Path) -> tuple[bytes | None, dict[str, Any]]:
        judge = _Answers(run, coded)
        parity: dict[str, Any] = {"answers": {"images": len(judge.views), "texts": judge.texts.shape[1]}}
        parity["answers"]["fp32"] = judge.same(encode_views(encoder, judge.views), judge.torchs)
        int8 = encoder.with_name("encoder.int8.onnx")
        try:
            write_int8(encoder, int8, _spread(coded.views, 1))
            symbols = encode_views(int8, judge.views)
            exact, got = coded.decoded(encode_views(encoder, judge.views)), coded.decoded(symbols)
            plain = coded.decoded(unoptimised(int8, judge.views[:16]))
            cosine, own = (float((a * b).sum(1).mean()) for a, b in ((got, exact), (plain, got[:16])))
            if min(cosine, own) < FLOOR:
                raise ParityError(
                    f"encoder.int8.onnx has a cosine of {cosine:.3f} with fp32's vectors, and of {own:.3f} with its "
                    f"own without graph optimisations (need {FLOOR:g}): use encoder.onnx"
                )
        except ParityError as error:
            print(f"no int8 encoder: {error}")
            return None, parity
        parity["answers"]["int8"] = judge.same(symbols, exact)
        parity["mean_cosine"] = {"int8": cosine}
        return int8.read_bytes(), parity

    training = {
        "data": f"{run.photographs.described()}, {len(run.targets)} of them distilled from, without labels",
        "teachers": [run.teacher.id],
        "backbone": settings.backbone,
        "settings": {**asdict(settings), "count": len(run.targets)},
        "steps": run.steps,
        "held_out": {name: round(value, 4) for name, value in last.items()},
    }
    name = bundle_name("student", run.teacher.id)
    return write_embedding_bundle(out, name, tower, run.teacher.id, coded, training, finish)


class _Answers:
    """First answers among class names, of photographs that the codec was fitted to but no range of int8 was set by."""

    def __init__(self, run: Distilling, coded: Coded) -> None:
        self.texts = run.answers.vectors[:NAMES].T  # (D, T)
        self._coded = coded
        self.views = _spread(coded.views, 0)
        self.torchs = _spread(coded.vectors, 0)

    def same(self, symbols: np.ndarray, wanted: torch.Tensor) -> float:
        """Share of first answers that symbols (N, C, 1, 1) and unit vectors (N, D) have in common."""
        got = self._coded.decoded(symbols) @ self.texts
        return float((got.argmax(1) == (wanted @ self.texts).argmax(1)).float().mean())


def _spread(values: np.ndarray | torch.Tensor, first: int) -> np.ndarray | torch.Tensor:
    """At most `JUDGED` of them from all over, as a source's end is of one kind; other ones for each `first`, 0 or 1.

    Ranges set on the last 256 of 3,000 photographs gave the first ones 78 % of equal answers instead of 82.
    """
    step = max(2, len(values) // JUDGED)
    return values[first::step][:JUDGED]


def _stated(shift: torch.Tensor, scale: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of 0..1 that a student's input scaling stands for (see `StudentNet`)."""
    from export.families.front import IMAGE_MEAN, IMAGE_STD

    std = IMAGE_STD / 255 / scale.flatten()
    mean = IMAGE_MEAN / 255 - shift.flatten() * std
    return tuple(round(float(value), 6) for value in mean), tuple(round(float(value), 6) for value in std)
