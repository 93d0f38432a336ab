"""The image head: pooled features → embedding, as two branches that are one MLP once they are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from thinwire.errors import ClipUnavailable

if TYPE_CHECKING:
    from export.clip_lite.backbones import Backbone

EMBED_DIM = 384
FEATURE_DIM = 1280  # of EfficientNet-Lite
HIDDEN = 2 * EMBED_DIM  # what timm's `timm_proj: mlp` builds
VOTES = 640


class ImageHead(nn.Module):
    """Pooled features (B, F) → embedding (B, 384); the layout of timm's Mlp."""

    def __init__(self, features: int = FEATURE_DIM) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, EMBED_DIM, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(features)))


def stands_on(clip: nn.Module, backbone: Backbone) -> bool:
    """Whether an image tower is the network `backbone` with clip-lite's head behind it."""
    import timm

    trunk = getattr(clip.visual, "trunk", nn.Identity())
    wanted = timm.create_model(backbone.timm_name, pretrained=False, num_classes=0)
    mlp = getattr(getattr(clip.visual, "head", None), "mlp", None)
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in (wanted, trunk)]
    return mlp is not None and shapes[0] == shapes[1]


def head_of(clip: nn.Module, backbone: Backbone) -> ImageHead:
    """The image head of a clip-lite. Raises `ClipUnavailable` where it stands on another network than `backbone`."""
    if not stands_on(clip, backbone):
        raise ClipUnavailable(f"its image tower is not {backbone.name} with clip-lite's head: give its own --backbone")
    mlp = clip.visual.head.mlp
    head = ImageHead(mlp.fc1.in_features)
    head.load_state_dict({name: value for name, value in mlp.state_dict().items() if name in head.state_dict()})
    return head.eval()


class TwoBranchHead(nn.Module):
    """The head while it is aligned: a branch of votes, which knows 1000 classes, and a free branch for all else.

    Trained as one random MLP the head forgets every class that photos-train lacks; started wholly as ConSE it never
    learns what captions say. Two branches with learning rates of their own keep both.
    """

    def __init__(
        self, leaf_text: torch.Tensor, classifier: nn.Linear, votes: int = VOTES, dropout: float = 0.4
    ) -> None:
        """leaf_text (1000, 384): the mean text vector of each ImageNet class' names; classifier: of the backbone."""
        super().__init__()
        width = classifier.in_features
        self.vote1, self.vote2 = nn.Linear(width, votes), nn.Linear(votes, EMBED_DIM, bias=False)
        self.free1 = nn.Linear(width, HIDDEN - votes)
        self.free2 = nn.Linear(HIDDEN - votes, EMBED_DIM, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.free2.weight, std=0.02)
        self._initialise_votes(leaf_text, classifier)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        votes = self.vote2(F.gelu(self.vote1(features)))
        return votes + self.free2(F.gelu(self.free1(self.dropout(features))))

    def branches(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of the votes and of the free branch."""
        votes = [*self.vote1.parameters(), *self.vote2.parameters()]
        return votes, [*self.free1.parameters(), *self.free2.parameters()]

    def merge(self) -> ImageHead:
        """The same function (without dropout) as one MLP: the branches' hidden units side by side."""
        head = ImageHead(self.vote1.in_features)
        with torch.no_grad():
            head.fc1.weight.copy_(torch.cat([self.vote1.weight, self.free1.weight]))
            head.fc1.bias.copy_(torch.cat([self.vote1.bias, self.free1.bias]))
            head.fc2.weight.copy_(torch.cat([self.vote2.weight, self.free2.weight], dim=1))
        return head.eval()

    def _initialise_votes(self, leaf_text: torch.Tensor, classifier: nn.Linear, threshold: float = 2.0) -> None:
        """ConSE with a rectifier in place of the softmax: every hidden unit is an ImageNet class (the most alike ones
        merged until they fit), which votes for its name's text vector once its logit passes `threshold`."""
        from sklearn.cluster import AgglomerativeClustering

        weight, bias = classifier.weight.detach(), classifier.bias.detach()
        alike = torch.cat([F.normalize(weight - weight.mean(0), dim=1), F.normalize(leaf_text, dim=1)], 1).numpy()
        votes = self.vote1.out_features
        groups = torch.from_numpy(AgglomerativeClustering(votes).fit_predict(alike))
        share = F.one_hot(groups, votes).float()
        share = (share / share.sum(0)).T  # (votes, 1000): the mean over a group
        with torch.no_grad():
            self.vote1.weight.copy_(share @ weight)
            self.vote1.bias.copy_(share @ bias - threshold)
            self.vote2.weight.copy_(0.1 * (share @ (leaf_text - leaf_text.mean(0))).T)
