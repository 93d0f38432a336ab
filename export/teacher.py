"""Teachers: frozen image networks that say what a codec's pictures must keep. Any CLIP's tower, or timm's networks.

Each is asked at its own size, mean and std. Several may teach one codec, one drawn for each step, so that it is not
fitted to one network's taste.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from export.answers import AnswerDivergence
from export.depthwise import fast_backward
from export.objective import TowerFeatures
from export.taps import Tap, find_taps
from export.towers import Tower, UnitTower, load_tower
from synthesis.folding import fold_batch_norm
from synthesis.neck import Entry, RestOfTower

VIEW = 224  # pixels of the codecs' view: a crop of it shows things as large as the tower would see them
MIN_COSINE = 0.999  # of a folded tower with the tower itself
MIN_COSINE_HALF = 0.98  # in bfloat16


class Teacher(nn.Module):
    """One frozen network. Input normalised RGB (B, 3, H, W), a crop of a view of 224 pixels, of any size."""

    def __init__(self, tower: Tower, answers: AnswerDivergence | None = None, fast: bool = True) -> None:
        """answers: of its text tower; None for a network without one. fast: folded and in bfloat16 where that gives
        the same vectors."""
        super().__init__()
        self.id, self.height, self.width = tower.id, tower.height, tower.width
        self.answers = answers
        net = copy.deepcopy(tower.net)
        self.free_size = _takes_any_size(net, tower)
        self.net, self.dtype = _quick(net, tower) if fast else (net, torch.float32)
        self.net.to(memory_format=torch.channels_last)
        taps = find_taps(copy.deepcopy(tower.net.visual), tower.height, tower.width)
        self._taps: dict[str, Tap] = {} if taps is None else {"middle": taps[0], "last": taps[1]}
        self._got: dict[str, torch.Tensor] = {}
        for key, tap in self._taps.items():
            self.net.visual.get_submodule(tap.module).register_forward_hook(self._keeper(key, tap))
        with torch.inference_mode():
            width = self.net(torch.zeros(1, 3, tower.height, tower.width).to(self.dtype)).shape[-1]
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: torch.Tensor) -> TowerFeatures:
        """Gradients reach `x` and nothing else."""
        self._got = {}
        vectors = F.normalize(self.net(self.fitted(x).to(self.dtype)).float(), dim=-1)
        got, self._got = self._got, {}
        return TowerFeatures(got.get("middle"), got.get("last"), vectors - self.mean)

    def join(self, entry: Entry) -> None:
        """Makes `from_entry` ready. Raises `DecoderError` where the tower has no such entry."""
        rest = RestOfTower(self.net.visual, entry, self.height, self.width)
        object.__setattr__(self, "_rest", rest)  # its weights are those of `net`: no second set in `parameters`

    def from_entry(self, features: torch.Tensor) -> TowerFeatures:
        """As `forward`, of what a neck gives (B, C, ...) at the entry; halfway there is nothing to compare."""
        self._got = {}
        vectors = F.normalize(self._rest(features.to(self.dtype)).float(), dim=-1)
        got, self._got = self._got, {}
        return TowerFeatures(None, got.get("last"), vectors - self.mean)

    @torch.no_grad()
    def at_entry(self, x: torch.Tensor, entry: Entry) -> torch.Tensor:
        """What the tower's own blocks give the entry for pictures (B, 3, H, W), as `Entry.channels_second` has it."""
        taken: list[torch.Tensor] = []
        block = self.net.visual.get_submodule(entry.module)
        hook = block.register_forward_pre_hook(lambda _, args: taken.append(entry.channels_second(args[0])))
        try:
            self(x)
        finally:
            hook.remove()
        return taken[0]

    def embedding(self, features: TowerFeatures) -> torch.Tensor:
        """The unit vectors (B, D) that the tower itself would give."""
        return features.pooled + self.mean

    def disagreement(self, got: TowerFeatures, wanted: TowerFeatures, generator: torch.Generator) -> torch.Tensor:
        """KL divergence of the answers to random texts (B,) in nats; zeros for a network without a text tower."""
        if self.answers is None:
            return torch.zeros(len(wanted.pooled), device=wanted.pooled.device)
        return self.answers(self.embedding(got), self.embedding(wanted), generator)

    def fitted(self, x: torch.Tensor) -> torch.Tensor:
        """The crop at the scale at which this tower looks at a whole view; at its own size if it takes no other."""
        size = (self.height, self.width)
        if self.free_size:
            size = tuple(max(32, round(side * own / VIEW)) for side, own in zip(x.shape[-2:], size))
        if tuple(x.shape[-2:]) == size:
            return x
        x = F.interpolate(x.float(), size, mode="bicubic", antialias=True)
        return x.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def centre(self, x: torch.Tensor, batch: int = 50) -> None:
        """Takes the mean embedding from photographs (B, 3, H, W): what all images share says little."""
        parts = [self.embedding(self(x[start : start + batch])) for start in range(0, len(x), batch)]
        self.mean.copy_(torch.cat(parts).mean(0))

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)

    def _keeper(self, key: str, tap: Tap):
        def keep(module: nn.Module, args: tuple, out: object) -> None:
            self._got[key] = tap.channels_second(out)

        return keep


def load_teachers(specs: Sequence[str], captions: Sequence[str] = (), fast: bool = True) -> list[Teacher]:
    """A teacher for each spec, as `load_tower` takes it; captions: texts to compare answers by, beside class names.

    Raises `ClipUnavailable`.
    """
    teachers = []
    for spec in dict.fromkeys(specs):
        tower = load_tower(spec)
        answers = AnswerDivergence.of(spec, tower.id, captions) if tower.has_text else None
        teachers.append(Teacher(tower, answers, fast).requires_grad_(False))
    return teachers


@torch.inference_mode()
def _takes_any_size(net: UnitTower, tower: Tower) -> bool:
    """Whether the network looks at pictures of another size as it does at its own: convolutions and a mean do."""
    if any(isinstance(module, nn.MultiheadAttention) or "attn" in name for name, module in net.named_modules()):
        return False
    try:
        net(torch.zeros(1, 3, tower.height + 32, tower.width + 32))
    except Exception:  # whatever a network raises on shapes that it was not made for
        return False
    return True


@torch.no_grad()  # not inference_mode: copies made there could not be trained through
def _quick(net: UnitTower, tower: Tower) -> tuple[UnitTower, torch.dtype]:
    """The same network folded, with fast backward passes and in bfloat16, each where the vectors stay the same."""
    probe = torch.randn(2, 3, tower.height, tower.width, generator=torch.Generator().manual_seed(0))
    wanted = net(probe)

    def near(other: nn.Module, dtype: torch.dtype, least: float) -> bool:
        try:
            return F.cosine_similarity(other(probe.to(dtype)).float(), wanted, dim=1).min().item() >= least
        except RuntimeError:  # layers that do not take half precision
            return False

    folded = fold_batch_norm(copy.deepcopy(net)).requires_grad_(False)
    if not near(folded, torch.float32, MIN_COSINE):
        folded = net
    folded = fast_backward(folded)
    half = copy.deepcopy(folded).to(torch.bfloat16)
    if near(half, torch.bfloat16, MIN_COSINE_HALF):
        return half, torch.bfloat16
    return folded, torch.float32
