"""Zero-shot and retrieval figures of an open_clip folder on the eval packs, loaded exactly as a user would load it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import torch
from torch.nn import functional as F

from export.clip_lite.align import load_label_sets, node_prompts
from export.clip_lite.text_tower import encode_texts, rotation
from export.clip_lite.texts import encode_cached
from export.clip_lite.unseen import retrieval
from export.clip_lite.wordnet import nouns
from export.photos import Pack, eval_pack
from export.teachers import MiniLM
from synthesis.clip_source import open_clip_source
from thinwire.prompts import PROMPT_SETS

CLASSIFICATION = ("caltech101", "cifar10", "scenes", "imagenette")


def common_texts(step: int = 8) -> list[str]:
    """Labels in prompts and glosses of WordNet: what a rotation between two text towers is fitted on."""
    synsets = nouns()
    prompts, _ = node_prompts(load_label_sets())
    glosses = [f"{each.lemmas[0]}, {each.gloss}" for each in synsets.values() if len(each.gloss) < 80]
    return [*prompts[::step], *glosses[:: 2 * step]]


class Evaluator:
    """Scores any prompt set and retrieval.

    `teacher_text` puts MiniLM in place of the text tower, its vectors turned to where the tower has them: what the
    distillation cost, and what joint tuning gave.
    """

    def __init__(self, folder: Path, teacher_text: bool = False) -> None:
        open_clip_source(str(folder))  # its errors name the fix
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        self.teacher = None
        if teacher_text:
            self.teacher = MiniLM()
            texts = common_texts()
            corpus = encode_cached("common", texts)
            self.basis = rotation(torch.from_numpy(corpus.vectors), encode_texts(self.model, texts, "common texts"))

    @torch.inference_mode()
    def images(self, pack: Pack) -> torch.Tensor:
        """Unit vectors (N, D) of the canonical 224x224 views."""
        from PIL import Image

        out = []
        for start in range(0, len(pack.rows), 50):
            batch = torch.stack(
                [self.preprocess(Image.fromarray(np.array(im))) for im in pack.images[start : start + 50]]
            )
            out.append(F.normalize(self.model.encode_image(batch), dim=1))
        return torch.cat(out)

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors (N, D)."""
        if self.teacher:
            return F.normalize(torch.from_numpy(self.teacher.encode(texts)) @ self.basis, dim=1)
        return torch.cat(
            [
                F.normalize(self.model.encode_text(self.tokenizer(texts[i : i + 500])), dim=1)
                for i in range(0, len(texts), 500)
            ]
        )

    def classification(self, name: str, prompt_sets: tuple[str, ...] = ("1", "7", "80")) -> dict[str, dict[str, float]]:
        """Top-1 and top-5 in percent per prompt set."""
        pack = eval_pack(name)
        classes = sorted({row["class"] for row in pack.rows})
        truth = torch.tensor([classes.index(row["class"]) for row in pack.rows])
        image = self.images(pack)
        out = {}
        for prompts in prompt_sets:
            templates = PROMPT_SETS[prompts]
            texts = [template.format(c.replace("_", " ")) for c in classes for template in templates]
            head = F.normalize(self.texts(texts).reshape(len(classes), len(templates), -1).mean(1), dim=1)
            ranked = (image @ head.T).argsort(1, descending=True)
            hits = ranked[:, :5] == truth[:, None]
            out[prompts] = {
                "top1": round(100 * hits[:, 0].float().mean().item(), 1),
                "top5": round(100 * hits.any(1).float().mean().item(), 1),
            }
        return out

    def retrieval(self, name: str = "flickr8k") -> dict[str, float]:
        """R@1, R@10 in percent, text to image and image to text."""
        pack = eval_pack(name)
        captions = [row[f"caption_{k}"] for row in pack.rows for k in range(1, 6)]
        owner = torch.arange(len(pack.rows)).repeat_interleave(5)
        return retrieval(self.images(pack), self.texts(captions), owner)

    def report(self) -> dict:
        return {
            "zero_shot": {name: self.classification(name) for name in CLASSIFICATION},
            "retrieval_flickr8k": self.retrieval(),
        }
