"""A ladder of bundles, cheap first: what a device can send of one frame, step by step, as far as the server asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.encoder import Encoder, default_rate
from edge.errors import ConnectionOptionsError
from thinwire.bundle import Bundle, load_bundle
from thinwire.packet import Packet
from thinwire.v1 import inference_pb2 as pb

FORM = "names of bundles, cheap first, each with a rate if need be, as in student,still or student:low,still:high"
MAX_STEPS = 4


@dataclass(frozen=True, eq=False)
class Step:
    """One bundle of a ladder. rate: the highest that is sent; stated: it was given, not chosen here."""

    encoder: Encoder
    rate: str
    stated: bool = False

    @property
    def bundle(self) -> Bundle:
        return self.encoder.bundle

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of layers, or rungs, up to the step's rate."""
        most = self.bundle.n_layers(self.rate)
        return tuple(sorted(level for level in self.bundle.rates.values() if level <= most))

    def packet(self, view: np.ndarray, level: int | None = None) -> Packet:
        """uint8 (H, W, 3) view of any bundle → this one's packet of that many layers (or rung); None: of its rate."""
        rate = self.rate
        if level is not None:
            rate = next(name for name, each in self.bundle.rates.items() if each == level)
        return self.encoder.encode(self.view(view), rate).packet

    def view(self, view: np.ndarray) -> np.ndarray:
        """A view that was made for another step → this bundle's."""
        return view if view.shape[:2] == self.bundle.input_size else self.bundle.view(view)


@dataclass(frozen=True, eq=False)
class Ladder:
    """Steps, cheap first. Raises `ConnectionOptionsError` for fewer than 2, more than 4, or two of one bundle."""

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.steps) <= MAX_STEPS:
            raise ConnectionOptionsError(f"a ladder has 2 to {MAX_STEPS} steps, not {len(self.steps)}: {FORM}")
        if len({step.bundle.model_id for step in self.steps}) < len(self.steps):
            raise ConnectionOptionsError("a ladder names a bundle twice: each step is another bundle")

    @property
    def first(self) -> Step:
        return self.steps[0]

    @property
    def others(self) -> tuple[Step, ...]:
        return self.steps[1:]

    @property
    def widest(self) -> Encoder:
        """That of the largest view: the views of the others are made from it."""
        return max((step.encoder for step in self.steps), key=lambda encoder: encoder.height * encoder.width)

    def step_of(self, model_id: bytes) -> Step | None:
        """The step after the first whose packets carry this model id."""
        return next((step for step in self.others if step.bundle.model_id == model_id), None)


def open_ladder(text: str, threads: int = 1, precision: str = "auto", provider: str = "cpu") -> Ladder:
    """`NAME[:RATE],NAME[:RATE],...` → the ladder, its encoders ready. Raises `ConnectionOptionsError`, `BundleError`,
    `RateError` or `EncoderError`. precision: of encoders that have it; others run in fp32."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    steps = []
    for word in words:
        name, colon, rate = (word, "", "") if Path(word).is_dir() else word.rpartition(":")
        bundle = load_bundle(name if colon else word)
        chosen = rate if colon else default_rate(bundle)
        bundle.n_layers(chosen)
        own = precision if bundle.has_encoder else "auto"
        steps.append(Step(Encoder(bundle, threads, own, provider), chosen, bool(colon)))
    return Ladder(tuple(steps))


def fuses(info: pb.GetServerInfoResponse, first: Bundle, others: Sequence[Bundle]) -> list[Bundle]:
    """Those of `others` whose packets the server fuses with those of `first`, by a calibration that it holds."""
    known = next((each.fuses_with for each in info.bundles if each.model_id == first.model_id), ())
    return [bundle for bundle in others if bundle.model_id in known]


def not_fused(first: Bundle, bundle: Bundle) -> str:
    """What is said once where they are not."""
    return (
        f"the server holds no calibration of {first.name} with {bundle.name}: frames are answered without packets of "
        f"{bundle.name} (`thinwire-bench cascade --fit` makes one, into {first.name}'s folder on the server)"
    )
