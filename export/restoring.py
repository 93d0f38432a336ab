"""Trains the network that restores stills in the cloud (`synthesis.still.RestoreSynthesis`): fidelity, and no teacher.

Losses on the features of known networks were tried and do not transfer: what one network rewards another punishes.
So the target is the picture: absolute error and structural similarity (Wang et al. 2004) at three scales. Photographs
are coded once, each at some random sizes and qualities; the network is told which. Resumable, seeded.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from export.training_loop import run_to_end
from synthesis.still import RestoreSynthesis, condition
from thinwire import bare_av1
from thinwire.bare_av1 import form_of
from thinwire.imaging import canonical_view

SIZE, CROP = 224, 128
QUALITIES = {56: (20, 55), 64: (18, 52), 80: (12, 50), 96: (10, 48), 112: (8, 45), 128: (7, 40), 144: (6, 36)}
"""Pixels of a side → range of qualities, of training stills."""
MOST_BYTES = 620  # of a training still: with more the network does harm, and is left off
SPEED = 8  # of AV1 in training: half the time, nearly the same pictures
EMA = 0.999


class Photographs(Protocol):
    """What is trained on; `take` gives uint8 (B, 224, 224, 3)."""

    def sample(self, count: int, seed: int = 0) -> np.ndarray: ...
    def take(self, ids: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class RestoreSettings:
    """`minutes` of training, beside the coding of `count` photographs, each `versions` times."""

    minutes: float = 40.0
    steps: int | None = None
    count: int = 8000
    versions: int = 3
    batch: int = 8
    learning_rate: float = 1.2e-3
    seed: int = 0
    threads: int = 1


class Stills:
    """Coded photographs: which one, at which size and quality, and the bare frame."""

    def __init__(self, photographs: Photographs, settings: RestoreSettings, file: Path) -> None:
        self._photographs = photographs
        if not file.exists():
            _code(photographs, settings, file)
        with np.load(file) as arrays:
            self.ids, self.sizes, self.qualities = arrays["ids"], arrays["sizes"], arrays["qualities"]
            self._ends, self._frames = arrays["ends"], arrays["frames"]

    def __len__(self) -> int:
        return len(self.ids)

    def pairs(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
        """(B,) → (decoded and enlarged, original) uint8 (B, 224, 224, 3) each, and conditions (B, 2)."""
        decoded = [canonical_view(bare_av1.decode(*self._frame(place)), SIZE, SIZE) for place in index]
        told = [condition(int(self.sizes[place]), int(self.qualities[place])) for place in index]
        return np.stack(decoded), self._photographs.take(self.ids[index]), torch.tensor(told)

    def _frame(self, place: int) -> tuple[bytes, bare_av1.BareForm]:
        start = 0 if place == 0 else int(self._ends[place - 1])
        side = int(self.sizes[place])
        return self._frames[start : int(self._ends[place])].tobytes(), form_of(side, side, speed=SPEED)


def _code(photographs: Photographs, settings: RestoreSettings, file: Path) -> None:
    rng = np.random.default_rng(settings.seed + 1)
    kept: list[tuple[int, int, int, bytes]] = []
    for photo in tqdm(photographs.sample(settings.count, settings.seed), desc="stills to learn from", unit="photo"):
        (view,) = photographs.take(np.array([photo]))
        for size in rng.choice(list(QUALITIES), settings.versions, replace=False):
            side, quality = int(size), int(rng.integers(QUALITIES[int(size)][0], QUALITIES[int(size)][1] + 1))
            small = Image.fromarray(view).resize((side, side), Image.Resampling.LANCZOS)
            frame = bare_av1.encode(small, form_of(side, side, speed=SPEED), quality=quality, speed=SPEED)
            if len(frame) <= MOST_BYTES:
                kept.append((int(photo), side, quality, frame))
    partial = file.with_suffix(".partial.npz")
    np.savez(
        partial,
        ids=np.array([each[0] for each in kept]),
        sizes=np.array([each[1] for each in kept]),
        qualities=np.array([each[2] for each in kept]),
        ends=np.cumsum([len(each[3]) for each in kept]),
        frames=np.frombuffer(b"".join(each[3] for each in kept), np.uint8),
    )
    partial.rename(file)


class Restoring:
    """A run of `training_loop`. `averaged` is what ships: the moving average of the weights."""

    def __init__(self, spec: dict, stills: Stills, unseen: Stills, settings: RestoreSettings) -> None:
        torch.manual_seed(settings.seed)
        arguments = {key: value for key, value in spec.items() if key != "arch"}
        self.net = RestoreSynthesis(**arguments).to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.net)
        self.settings, self.stills, self.unseen = settings, stills, unseen
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
        self.progress, self.steps = 0.0, 0

    def state(self) -> dict:
        return {
            "net": self.net.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": self.progress,
            "steps": self.steps,
        }

    def restore(self, state: dict) -> None:
        self.net.load_state_dict(state["net"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.progress, self.steps = state["progress"], state["steps"]

    def step(self) -> dict[str, float]:
        rng = np.random.default_rng((self.settings.seed, self.steps))
        cosine = 0.49 * (1 + math.cos(math.pi * self.progress)) + 0.02
        self.optimiser.param_groups[0]["lr"] = self.settings.learning_rate * min(1.0, (self.steps + 1) / 100) * cosine
        seen, original, told = self.stills.pairs(rng.integers(0, len(self.stills), self.settings.batch))
        seen, original = _crops(seen, original, rng)
        with torch.autocast("cpu", torch.bfloat16):
            missing = self.net.missing(seen, told)
        made = seen + missing.float()
        loss = fidelity(made, original)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.steps += 1
        keep = min(EMA, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for average, value in zip(self.averaged.parameters(), self.net.parameters()):
                average.lerp_(value, 1 - keep)
        return {"loss": loss.item(), "gain_db": gain_db(seen, made.detach(), original)}

    @torch.inference_mode()
    def held_out(self) -> dict[str, float]:
        gains = []
        for start in range(0, len(self.unseen), self.settings.batch):
            index = np.arange(start, min(start + self.settings.batch, len(self.unseen)))
            seen, original, told = self.unseen.pairs(index)
            seen, original = _tensor(seen), _tensor(original)
            made = (seen + self.averaged.missing(seen, told)).clamp(0, 1)
            gains.append(gain_db(seen, made, original))
        return {"gain_db": sum(gains) / len(gains)}


def fidelity(made: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """RGB in [0, 1] (B, 3, H, W), twice → one number: absolute error, and 1 - SSIM at three scales."""
    loss = 8 * ((made - original).square() + 1e-6).sqrt().mean()
    for _ in range(3):
        loss = loss + 0.12 * (1 - _ssim(made, original))
        made, original = F.avg_pool2d(made, 2), F.avg_pool2d(original, 2)
    return loss


def gain_db(seen: torch.Tensor, made: torch.Tensor, original: torch.Tensor) -> float:
    """How much nearer `made` is to the original than `seen`: decibels of squared error."""
    return 10 * math.log10((seen - original).square().mean().item() / (made - original).square().mean().item())


def _ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean structural similarity of grey values in windows of 7x7."""
    a, b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    mean_a, mean_b = F.avg_pool2d(a, 7, 1), F.avg_pool2d(b, 7, 1)
    var_a, var_b = F.avg_pool2d(a * a, 7, 1) - mean_a**2, F.avg_pool2d(b * b, 7, 1) - mean_b**2
    both = F.avg_pool2d(a * b, 7, 1) - mean_a * mean_b
    top = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
    return (top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))).mean()


def _crops(seen: np.ndarray, original: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Each pair's own random crop, half of them mirrored → RGB in [0, 1] (B, 3, CROP, CROP)."""
    out = []
    for pair in zip(seen, original):
        top, left = rng.integers(0, SIZE - CROP + 1, 2)
        flip = slice(None, None, -1) if rng.random() < 0.5 else slice(None)
        out.append([each[top : top + CROP, left : left + CROP][:, flip] for each in pair])
    return tuple(_tensor(np.stack([pair[place] for pair in out])) for place in range(2))


def _tensor(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(255)


def train_restoring(
    spec: dict, training: Photographs, unseen: Photographs, settings: RestoreSettings, folder: Path
) -> dict[str, torch.Tensor]:
    """Trains, or goes on with, the network of `spec` in `folder`; returns its averaged weights."""
    torch.set_num_threads(settings.threads)
    folder.mkdir(parents=True, exist_ok=True)
    stills = Stills(training, settings, folder / "stills.npz")
    few = RestoreSettings(count=48, versions=2, seed=settings.seed)
    run = Restoring(spec, stills, Stills(unseen, few, folder / "unseen.npz"), settings)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        run.restore(torch.load(checkpoint, map_location="cpu", weights_only=True))
    run_to_end(run, settings, folder, "restoring stills", look_from=0.1, look_every=0.1, save_every_s=120)
    return run.averaged.state_dict()
