"""Judges beside CLIP: any network by its own classes, roles from cards, summaries with intervals."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from benchmarks.data.sets import load_dataset
from benchmarks.judges.answer_cache import cached
from benchmarks.judges.networks import JudgeUnavailable, Network, load_network
from benchmarks.judges.panel import FOREIGN, OWN, Panel, PanelJudge, imagenet_classes, role_of, teachers_of
from benchmarks.results.judged import judges_of

COLOURS = np.eye(3, dtype=np.uint8)[:, None, None] * 255 + np.zeros((1, 6, 8, 1), np.uint8)  # red, green, blue


def colour_network(path, first: str, classes: int = 3, dtype: int = TensorProto.FLOAT, batch: int | str = "n"):
    """An ONNX classifier whose score of class c is the mean of colour c; of further classes it is very low."""
    shape = [batch, 3, 16, 20] if first == "channels" else [batch, 16, 20, 3]
    axes = [2, 3] if first == "channels" else [1, 2]
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["m"], axes=axes, keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["s"]),
        helper.make_node("Add", ["s", "b"], ["y"]),
    ]
    weight, bias = np.eye(3, classes, dtype=np.float32), np.full(classes, -1e4, np.float32)
    bias[:3] = 0
    if classes > 1000:  # class 0 is background: it always wins, and must not count
        weight, bias = np.roll(weight, 1, axis=1), np.roll(bias, 1)
        bias[0] = 1e4
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, value.shape, value.ravel())
        for name, value in (("w", weight), ("b", bias))
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, classes])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return f"onnx:{path}"


@pytest.mark.parametrize(
    ("first", "classes", "dtype", "batch"),
    [
        ("channels", 3, TensorProto.FLOAT, "n"),
        ("rows", 3, TensorProto.UINT8, 1),
        ("channels", 1001, TensorProto.FLOAT, 1),
    ],
)
def test_onnx_judges_answer_by_their_own_classes(tmp_path, first, classes, dtype, batch):
    judge = load_network(colour_network(tmp_path / "colours.onnx", first, classes, dtype, batch))
    assert (judge.size, judge.networks) == ((16, 20), ("colours",))
    assert judge.id.startswith("colours.onnx#")
    assert judge.answers(list(COLOURS) * 7) == [0, 1, 2] * 7


def test_timm_judges_load_a_local_checkpoint(tmp_path):
    import timm
    import torch

    net = timm.create_model("mobilenetv3_small_050", num_classes=1000)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    judge = load_network(f"timm:mobilenetv3_small_050@{tmp_path / 'net.pth'}")
    answers = judge.answers(list(COLOURS))
    assert len(answers) == 3
    assert answers == judge.answers(list(COLOURS))
    assert judge.size == (224, 224)


def test_judges_that_cannot_be_had_name_the_fix(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    for name, told in (
        ("resnet50", "timm:NAME"),
        ("timm:no_such_net", "list_models"),
        (f"timm:mobilenetv3_small_050@{tmp_path}/none.pth", "no checkpoint"),
        (f"onnx:{tmp_path}/none.onnx", "cannot be read"),
        (f"onnx:{tmp_path}/broken.onnx", "no ONNX network"),
        (f"tflite:{tmp_path}/none.tflite", "cannot be read"),
        (f"tflite:{tmp_path}/broken.onnx", "TensorFlow Lite"),
        (f"mobilenet-v2@{tmp_path}", "cannot be read"),
    ):
        with pytest.raises(JudgeUnavailable, match=told):
            load_network(name)


def test_labels_become_imagenet_classes_or_none():
    assert imagenet_classes(["Tench", "church", "gas pump"]) == (0, 497, 571)
    assert imagenet_classes(["tench", "no such thing"]) is None
    assert imagenet_classes(["crane"]) is None  # a bird and a machine


def judge_of(name="lite0", networks=("efficientnet-lite0", "tf_efficientnet_lite0"), targets=None) -> PanelJudge:
    return PanelJudge(name, f"{networks[-1]}#1", networks, targets, lambda pictures: [0] * len(pictures))


def test_a_judge_is_own_to_what_it_taught(tiny_bundle):
    lite0, vit = judge_of(), judge_of("deit-tiny", ("deit-tiny", "deit_tiny_patch16_224"))
    clip = PanelJudge("clip:clip-lite", "clip-lite#1a2b", ("clip-lite",), (0,), lambda pictures: [0])
    assert {role_of(each, None) for each in (lite0, vit, clip)} == {FOREIGN}
    about = tiny_bundle.card.about
    about["training"] = {"tuned_for": "clip-lite"}
    assert [role_of(each, tiny_bundle) for each in (lite0, vit, clip)] == [OWN, FOREIGN, OWN]
    about["training"]["teachers"] = [{"id": "timm:deit_tiny_patch16_224#9", "built_on": ["deit-tiny"]}]
    assert [role_of(each, tiny_bundle) for each in (lite0, vit, clip)] == [FOREIGN, OWN, FOREIGN]
    about["training"]["teachers"] = []
    assert teachers_of(about) == []
    assert role_of(clip, tiny_bundle, adapter_clip="clip-lite#1a2b") == OWN


def point(answers: list[int | None], targets=(5, 6)) -> dict:
    judges = {"net": {"id": "net#1", "role": FOREIGN, "targets": targets, "answers": answers}}
    return {"judges": judges, "targets": [0, 1, 0, 1], "key": {"seed": 0}}


def test_summaries_count_failures_as_misses():
    reference = point([5, 6, 5, 9])
    found = judges_of(point([5, 6, None, 9]), reference)["net"]
    assert (found["role"], found["agreement"], found["top1_relative"]) == (
        FOREIGN,
        0.75,
        pytest.approx(2 / 3, abs=1e-4),
    )
    assert found["agreement_ci95"][0] < 0.75 < found["agreement_ci95"][1]
    assert found["ci95"][0] <= found["top1_relative"] <= found["ci95"][1]
    unlabelled = judges_of(point([5, 6, 5, 9], None), point([5, 6, 5, 9], None))["net"]
    assert (unlabelled["agreement"], unlabelled["top1_relative"], unlabelled["ci95"]) == (1.0, None, None)
    assert judges_of(point([None] * 4), reference) == {"net": None}  # it was shown no pictures
    assert judges_of({}, {}) == {}


def test_a_panel_loads_each_judge_once(tmp_path):
    (tmp_path / "set" / "cat").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "set" / "cat" / "0.png")
    name = colour_network(tmp_path / "colours.onnx", "channels")
    panel = Panel.load([f"{name},{name}", name], load_dataset(tmp_path / "set"), "7")
    assert list(panel.key) == [name]
    assert panel.answers(list(COLOURS)) == {name: [0, 1, 2]}
    assert panel.described(None) == {name: {"id": panel.key[name], "role": FOREIGN, "targets": None}}
    assert isinstance(load_network(name), Network)


def test_a_panel_with_a_cache_asks_of_each_picture_once(tmp_path):
    asked = []

    def answers(pictures):
        asked.extend(pictures)
        return [int(picture[0, 0, 0]) for picture in pictures]

    def pictures(*values):
        return [np.full((2, 3, 3), value, np.uint8) for value in values]

    path = tmp_path / "deep" / "answers.txt"
    assert cached(answers, path)(pictures(1, 2, 1)) == [1, 2, 1]
    assert len(asked) == 2
    assert cached(answers, path)(pictures(2, 3)) == [2, 3]
    assert len(asked) == 3, "another run finds the file"
    assert cached(answers, path)([np.full((3, 2, 3), 1, np.uint8)]) == [1]
    assert len(asked) == 4, "a shape is no other's"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])  # a kill in the midst of a line
    asked.clear()
    again = cached(answers, path)
    assert again(pictures(1, 2, 3)) == [1, 2, 3]
    assert not asked
    assert again([np.full((3, 2, 3), 1, np.uint8)]) == [1]
    assert len(asked) == 1
    assert cached(answers, path)([np.full((3, 2, 3), 1, np.uint8)]) == [1]


def test_the_cache_of_a_second_clip_is_for_its_labels_alone(tmp_path):
    files = []
    for label in ("red", "green"):
        folder = tmp_path / label
        for name in (label, "blue"):
            (folder / name).mkdir(parents=True)
            Image.fromarray(COLOURS[0]).save(folder / name / "a.png")
        panel = Panel.load(["clip:clip-lite"], load_dataset(folder), "1", tmp_path / "cache")
        panel.answers([COLOURS[0]])
        files.append(len(list((tmp_path / "cache").iterdir())))
    assert files == [1, 2]
