"""Checkpoint files that are something else: the error says what they are, and its fix works."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from cloud.errors import ClipUnavailable
from cloud.networks.clip import load_clip
from tests.cloud.tiny_clip import MODEL_CFG, write_tiny_clip
from thinwire.bundle import load_bundle, shipped_bundles
from thinwire.errors import AlteredFile

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605157884\n"


def an_archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("weights.pt"))
    return out.getvalue()


ODD = {
    "lfs": (LFS, "Git LFS pointer.*git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html><head><title>Sign in</title>", "HTML page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "HTML page"),
    "json": (b'{"model_cfg": {}}', "JSON text"),
    "empty": (b"", "empty"),
    "tar": (an_archive(), "archive"),
    "cut": (b"PK\x03\x04" + bytes(5000), "cut"),
}


@pytest.fixture
def architecture(tmp_path):
    """The name of a tiny architecture that open_clip knows."""
    import open_clip

    (tmp_path / "tiny-odd-arch.json").write_text(json.dumps(MODEL_CFG))
    open_clip.add_model_config(tmp_path)
    return "tiny-odd-arch"


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_checkpoint_is_called_by_its_name(architecture, tmp_path, name):
    data, says = ODD[name]
    path = tmp_path / "weights.pt"
    path.write_bytes(data)
    with pytest.raises(ClipUnavailable, match=rf"weights\.pt: .*{says}"):
        load_clip(f"{architecture}:{path}")
    folder = write_tiny_clip(tmp_path / "folder")
    (folder / "open_clip_model.safetensors").write_bytes(data)
    with pytest.raises(ClipUnavailable, match=says):
        load_clip(str(folder))


def test_a_torchscript_file_is_named_and_the_command_that_is_told_mends_it(architecture, tmp_path):
    import open_clip
    import torch

    class Holder(torch.nn.Module):
        """The weights of a CLIP in an archive, beside the three numbers that OpenAI's files hold."""

        def __init__(self, model):
            super().__init__()
            self.register_buffer("context_length", torch.tensor(16))
            for name, value in model.state_dict().items():
                self.register_buffer(name.replace(".", "__"), value)

        def forward(self, x):
            return x

    model = open_clip.CLIP(**json.loads(json.dumps(MODEL_CFG)))
    path = tmp_path / "traced.pt"
    torch.jit.script(Holder(model)).save(str(path))
    with pytest.raises(ClipUnavailable, match="TorchScript archive") as caught:
        load_clip(f"{architecture}:{path}")
    text = str(caught.value)
    assert "weights_only" not in text
    assert "\x1b" not in text
    words = shlex.split(re.search(r"`(.*)`", text)[1])
    subprocess.run([sys.executable, *words[1:]], check=True, timeout=120)
    saved = torch.load(tmp_path / "traced-weights.pt", weights_only=True)
    assert "context_length" not in saved
    torch.testing.assert_close(saved["visual__proj"], model.visual.proj.detach())


def test_a_file_that_holds_more_than_tensors_is_not_run(architecture, tmp_path):
    import torch

    path = tmp_path / "whole.pt"
    torch.save({"model": np.random.default_rng(0)}, path)
    with pytest.raises(ClipUnavailable, match="holds more than tensors") as caught:
        load_clip(f"{architecture}:{path}")
    assert "weights_only=False" not in str(caught.value)


def test_a_pointer_in_a_bundle_is_called_one(tmp_path):
    import shutil

    folder = shutil.copytree(shipped_bundles()["layered"], tmp_path / "layered")
    (folder / "encoder.onnx").write_bytes(LFS)
    with pytest.raises(AlteredFile, match="Git LFS pointer"):
        load_bundle(folder).encoder_path("fp32")
