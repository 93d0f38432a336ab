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
from export.student.distil import TEXTS, Distilling
from export.student.network import load_student
from export.towers import Tower

CALIBRATION = 256  # photographs for the ranges of int8
JUDGED = 256  # photographs on which answers are compared
FLOOR = 0.85
"""Least share of equal first answers among 512 texts, int8 against fp32. Two thirds of these texts are captions,
between which even a CLIP wavers: among a few names it agrees far more often."""


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
            write_int8(encoder, int8, coded.views[-CALIBRATION:])
            symbols = encode_views(int8, judge.views)
            same = judge.same(symbols, coded.decoded(encode_views(encoder, judge.views)))
            plain = judge.same(unoptimised(int8, judge.views[:16]), coded.decoded(symbols[:16]))
            if min(same, plain) < FLOOR:
                raise ParityError(
                    f"encoder.int8.onnx gives {same:.1%} of fp32's first answers, and {plain:.1%} of its own without "
                    f"graph optimisations (need {FLOOR:.0%}): use encoder.onnx"
                )
        except ParityError as error:
            print(f"no int8 encoder: {error}")
            return None, parity
        parity["answers"]["int8"] = same
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
    """First answers to random texts, of photographs that the codec was fitted to but no range of int8 was set by."""

    def __init__(self, run: Distilling, coded: Coded) -> None:
        vectors = run.answers.vectors
        chosen = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(1))[:TEXTS]
        self.texts = vectors[chosen].T  # (D, T)
        self._coded = coded
        self.views = coded.views[:JUDGED]
        self.torchs = coded.vectors[:JUDGED]

    def same(self, symbols: np.ndarray, wanted: torch.Tensor) -> float:
        """Share of first answers that symbols (N, C, 1, 1) and unit vectors (N, D) have in common."""
        got = self._coded.decoded(symbols) @ self.texts
        return float((got.argmax(1) == (wanted @ self.texts).argmax(1)).float().mean())


def _stated(shift: torch.Tensor, scale: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of 0..1 that a student's input scaling stands for (see `StudentNet`)."""
    from export.families.front import IMAGE_MEAN, IMAGE_STD

    std = IMAGE_STD / 255 / scale.flatten()
    mean = IMAGE_MEAN / 255 - shift.flatten() * std
    return tuple(round(float(value), 6) for value in mean), tuple(round(float(value), 6) for value in std)
