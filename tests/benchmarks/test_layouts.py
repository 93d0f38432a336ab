"""Ordinary layouts of public data sets: the same pictures, labels and order as their own tools give."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.data.sets import DataError, find_datasets, load_captions, load_dataset
from edge.line.image_files import find_images


def picture(seed: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
CIFAR10 = {
    "cifar-10-batches-py/batches.meta": pickle.dumps({b"label_names": [b"airplane", b"automobile", b"bird"]}, 2),
    "cifar-10-batches-py/test_batch": pickle.dumps({b"data": PIXELS, b"labels": [2, 0, 1, 1, 0, 2]}, 2),
}
CIFAR100 = {
    "cifar-100-python/meta": pickle.dumps({b"fine_label_names": [b"apple", b"aquarium_fish"]}, 2),
    "cifar-100-python/test": pickle.dumps({b"data": PIXELS, b"fine_labels": [1, 0, 1, 1, 0, 0]}, 2),
}


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_as_torchvision_reads_it(tmp_path: Path, packed: bool):
    if packed:
        source = tmp_path / "cifar-10-python.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            for name, data in CIFAR10.items():
                add(archive, name, data)
    else:
        source = write(tmp_path / "cifar-10-python", CIFAR10)
    data = load_dataset(source)
    assert data.name == "cifar-10-python"
    assert data.labels == (
        "airplane",
        "automobile",
        "bird",
    )  # the archive's order, as published confusion tables have it
    for item in data.items:
        place = int(item.name[5:10])
        assert item.target == [2, 0, 1, 1, 0, 2][place]
        seen = np.asarray(Image.open(io.BytesIO(data.read(item))))
        assert np.array_equal(seen, PIXELS[place].reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar_100_and_its_inner_folder(tmp_path: Path):
    root = write(tmp_path / "data", CIFAR100)
    for source in (root, root / "cifar-100-python"):
        data = load_dataset(source)
        assert data.labels == ("apple", "aquarium fish")
        assert sorted(item.target for item in data.items) == [0, 0, 0, 1, 1, 1]


class _Runs:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a pickle ran')",))


@pytest.mark.parametrize(
    "bad", [pickle.dumps(_Runs()), b"", b"not a pickle", pickle.dumps([1]), pickle.dumps({b"data": 1})]
)
def test_damaged_or_hostile_cifar_is_an_error(tmp_path: Path, bad: bytes):
    root = write(tmp_path / "cifar", {**CIFAR10, "cifar-10-batches-py/test_batch": bad})
    with pytest.raises(DataError, match="damaged CIFAR"):
        load_dataset(root)


def test_imagenet_folders_get_the_names_people_use(tmp_path: Path):
    pytest.importorskip("open_clip")
    files = {f"val/{wnid}/ILSVRC2012_val_{n}.JPEG": picture(n) for n, wnid in enumerate(("n01443537", "n01440764"))}
    root = write(tmp_path / "imagenet", {**files, "train/n01440764/x.JPEG": picture(9)})
    data = load_dataset(root)
    assert data.labels == ("tench", "goldfish")  # in the order of WordNet ids
    assert {item.name.split("/")[0]: data.labels[item.target] for item in data.items} == {
        "n01440764": "tench",
        "n01443537": "goldfish",
    }
    write(root, {"val/n99999999/x.JPEG": picture(3)})
    with pytest.raises(DataError, match="n99999999"):
        load_dataset(root)


def test_class_names_and_templates_beside_folders(tmp_path: Path):
    root = write(
        tmp_path / "set",
        {"test/0/a.png": picture(0), "test/1/b.png": picture(1), "classnames.txt": b"zebra crossing\nant\n"}
        | {"zeroshot_classification_templates.txt": b"a satellite photo of {c}.\n{c} from above.\n"},
    )
    data = load_dataset(root)
    assert data.labels == ("zebra crossing", "ant")
    assert {item.name: item.target for item in data.items} == {"0/a.png": 0, "1/b.png": 1}
    assert data.templates == ("a satellite photo of {}.", "{} from above.")
    (root / "classnames.txt").write_text("one\n")
    with pytest.raises(DataError, match="names 1 classes, there are 2"):
        load_dataset(root)
    (root / "classnames.txt").write_text("one\ntwo\n")
    (root / "zeroshot_classification_templates.txt").write_text("no place\n")
    with pytest.raises(DataError, match="exactly once"):
        load_dataset(root)


def webdataset(root: Path, labels: dict[str, bytes]) -> Path:
    write(root, {"classnames.txt": b"cat\ndog\n", "templates.txt": b"a {c}\n", "test/nshards.txt": b"2"})
    for shard in range(2):
        with tarfile.open(root / f"test/{shard}.tar", "w") as archive:
            for number, (key, label) in enumerate(labels.items()):
                add(archive, f"{key}.png", picture(10 * shard + number))
                if label:
                    add(archive, f"{key}.cls", label)
    return root


def test_what_a_mac_adds_to_its_zips_is_no_class_and_no_picture(tmp_path: Path):
    files = {"cat/1.png": picture(1), "dog/2.JPG": picture(2)}
    litter = {
        "__MACOSX/cat/._1.png": b"litter",
        "cat/._1.png": b"litter",
        ".thumbnails/1.png": picture(3),
        "dog/.DS_Store": b"",
    }
    data = load_dataset(write(tmp_path / "zip", files | litter))
    assert tuple(data.labels) == ("cat", "dog")
    assert [item.name for item in data.items] == ["cat/1.png", "dog/2.JPG"]
    assert [found.relative.as_posix() for found in find_images([tmp_path / "zip"])] == ["cat/1.png", "dog/2.JPG"]
    outer = write(tmp_path / "sets", {"pets/cat/1.png": picture(1), "pets/dog/2.png": picture(2)})
    write(outer, {"__MACOSX/pets/cat/1.png": picture(1)})
    assert list(find_datasets(outer)) == ["pets"]


def test_webdataset_of_clip_benchmark(tmp_path: Path):
    data = load_dataset(webdataset(tmp_path / "wds", {"s0": b"1", "s1": b"0\n"}))
    assert data.labels == ("cat", "dog")
    assert data.templates == ("a {}",)
    assert {item.name: item.target for item in data.items} == {
        "0/s0.png": 1,
        "0/s1.png": 0,
        "1/s0.png": 1,
        "1/s1.png": 0,
    }
    (first,) = [item for item in data.items if item.name == "1/s0.png"]
    assert data.read(first) == picture(10)


@pytest.mark.parametrize("label", [b"2", b"", b"x"])
def test_webdataset_labels_are_checked(tmp_path: Path, label: bytes):
    with pytest.raises(DataError, match="no class 0 to 1"):
        load_dataset(webdataset(tmp_path / "wds", {"s0": label}))


def test_captions_wide_and_long(tmp_path: Path):
    images = {f"{n}.png": picture(n) for n in range(4)}
    wide = "path,caption_1,caption_2\n" + "".join(f"{n}.png,first {n},second {n}\n" for n in range(4))
    long = "image,caption\n" + "".join(f"{n}.png,{word} {n}\n" for n in range(4) for word in ("first", "second"))
    one = load_captions(write(tmp_path / "wide", {**images, "labels.csv": wide.encode()}))
    inside = {f"Images/{name}": data for name, data in images.items()}
    two = load_captions(write(tmp_path / "long", {**inside, "captions.txt": long.encode()}) / "captions.txt")
    assert {item.name: item.captions for item in one.items} == {
        f"{n}.png": (f"first {n}", f"second {n}") for n in range(4)
    }
    assert [item.captions for item in one.items] == [item.captions for item in two.items]
    assert one.read(one.items[0]) == images[one.items[0].name]
    assert load_captions(tmp_path / "wide", 2, 0).items == one.items[:2]
    (tmp_path / "wide/labels.csv").write_text(wide.replace("first 2", "another"))
    assert load_captions(tmp_path / "wide").sha256 != one.sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,class\n0.png,x\n", "caption columns"),
        ("path,caption\nno.png,x\n", "no.png"),
        ("path,caption\n", "no captions"),
    ],
)
def test_broken_captions_are_named(tmp_path: Path, text: str, message: str):
    with pytest.raises(DataError, match=message):
        load_captions(write(tmp_path / "c", {"0.png": picture(0), "captions.csv": text.encode()}))
    with pytest.raises(DataError, match="no such"):
        load_captions(tmp_path / "none")


def test_sets_of_a_folder_are_found(tmp_path: Path):
    write(
        tmp_path,
        {
            "birds/a/0.png": picture(0),
            "birds/b/1.png": picture(1),
            "notes/x.txt": b"",
            **{f"c/{k}": v for k, v in CIFAR10.items()},
        },
    )
    with tarfile.open(tmp_path / "junk.tar", "w") as archive:
        add(archive, "x.txt", b"x")
    assert list(find_datasets(tmp_path)) == ["birds", "c"]
    assert list(find_datasets(tmp_path / "birds")) == ["birds"]  # a user's own folder of class folders
    with pytest.raises(DataError, match="no such folder"):
        find_datasets(tmp_path / "nowhere")
