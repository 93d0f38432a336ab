"""`python -m tests.without_torch ARGUMENT...`: `thinwire-cloud`, which finds no PyTorch installed."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder

HIDDEN = {"torch", "torchvision", "open_clip", "timm", "transformers", "onnx", "onnxscript", "tests"}


class Hiding(MetaPathFinder):
    """A finder that finds what the one behind it finds, less the packages in HIDDEN."""

    def __init__(self, behind: MetaPathFinder) -> None:
        self._behind = behind

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self._behind.find_spec(name, path, target)


if __name__ == "__main__":
    sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
    from cloud.cli import main

    code = main(sys.argv[1:])
    loaded = HIDDEN & {name.partition(".")[0] for name in sys.modules} - {"tests"}
    sys.exit(f"loaded all the same: {loaded}" if loaded else code)
