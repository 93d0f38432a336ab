"""The gain of an adapter: figures made by hand, and both commands over two real servers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import cli
from benchmarks.accuracy.adapter_gain import gains, lines
from benchmarks.codecs.peers import png_bytes
from benchmarks.stats.paired import paired_difference
from cloud.networks.clip import load_clip
from tests.cloud.adapters import write_random_adapter
from tests.cloud.random_variant import random_variant
from tests.cloud.tiny_clip import write_tiny_clip
from tests.tiny_bundle import synthetic_views


def flags(*ones: int, count: int = 10) -> np.ndarray:
    return np.isin(np.arange(count), ones)


def test_the_paired_interval_counts_only_images_that_changed():
    plain = flags(*range(400), count=1000)
    adapted = plain.copy()
    adapted[500:560], adapted[:20] = True, False  # 60 won, 20 lost
    gain, (low, high) = paired_difference(adapted, plain)
    assert gain == pytest.approx(0.04)
    assert high - low == pytest.approx(2 * 1.96 * (0.08 - 0.04**2) ** 0.5 / 1000**0.5, rel=0.15)
    assert paired_difference(plain, plain) == (0.0, (0.0, 0.0))
    with pytest.raises(ValueError, match="same images"):
        paired_difference(plain, plain[:-1])


def test_gains_at_equal_bytes_and_at_equal_accuracy():
    sizes = np.array([[100.0] * 10, [200.0] * 10, [400.0] * 10])
    plain = np.array([flags(0, 1), flags(0, 1, 2, 3), flags(*range(8))])
    told = gains(["a", "b", "c"], sizes, plain, {"a": flags(0, 1, 2, 3), "b": flags(0, 2, 3)})
    first, second = told["rates"]
    assert (first["rate"], first["bytes_mean"], first["top1"], first["top1_adapted"]) == ("a", 100, 0.2, 0.4)
    assert (first["gain"], first["bytes_plain"]) == (0.2, 200.0)  # what "b" reaches
    assert (second["gain"], second["mcnemar_p"]) == (-0.1, 1.0)
    assert second["bytes_plain"] == pytest.approx(200 / 2**0.5, abs=0.1)  # halfway from "a" to "b"
    assert 0 < told["rate_saving"]["saving"] < 0.5
    assert "gain +0.200" in lines(told)[0]
    assert "without it that takes 200 B" in lines(told)[0]
    nothing = gains(["a"], sizes[:1], plain[:1], {"a": plain[0]})
    assert nothing["rate_saving"]["reason"] == "a curve has fewer than two points"
    assert "not told" in lines(nothing)[-1]


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny_bundle_with_decoder) -> list[str]:
    """Six pictures, a random CLIP, and an adapter of it for rate "low"."""
    root = tmp_path_factory.mktemp("gain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THINWIRE_CACHE", str(root / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        clip = write_tiny_clip(root / "tiny-random-clip")
        write_random_adapter(root / "adapter", load_clip(str(clip)), tiny_bundle_with_decoder)
        (root / "pack").mkdir()
        table = ["path,class"]
        for place, view in enumerate(synthetic_views(6, 64, seed=2)):
            (root / "pack" / f"{place}.png").write_bytes(png_bytes(view))
            table.append(f"{place}.png,{('cat', 'dog')[place % 2]}")
        (root / "pack" / "labels.csv").write_text("\n".join(table) + "\n")
        yield ["--data", str(root / "pack"), "--clip", str(clip), "--adapter", str(root / "adapter")]


def run(capsys, *words: str) -> tuple[int, dict | None, str]:
    code = cli.main(list(words))
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out.strip() else None, err


def test_eval_asks_both_servers(words, tiny_bundle_with_decoder, capsys):
    code, document, err = run(capsys, "eval", *words, "--bundle", str(tiny_bundle_with_decoder.path))
    assert code == 0, err
    rows = [(row["codec"], row["rate"]) for row in document["results"]]
    assert rows == [
        ("uncompressed", None),
        *(("tiny", rate) for rate in ("low", "mid", "high")),
        ("tiny+adapter", "low"),
    ]
    told = document["adapter"]
    (row,) = told["rates"]
    assert told["for"] == ["low"]
    assert row["bytes_mean"] == document["results"][1]["bytes_mean"] == document["results"][4]["bytes_mean"]
    assert row["top1"] == document["results"][1]["top1"]
    assert row["top1_adapted"] == document["results"][4]["top1"]
    assert "adapter at low" in err


def test_an_adapter_to_a_tuned_decoder_is_measured_with_that_decoder_on_both_sides(
    words, tiny_bundle_with_decoder, tmp_path, capsys
):
    data, clip = words[1], words[3]
    tower, bundle = load_clip(clip), tiny_bundle_with_decoder
    decoder = random_variant(tmp_path / "decoder", bundle, tower, "pixels")
    write_random_adapter(tmp_path / "adapter", tower, bundle, decoder=decoder)
    asked = ["eval", "--data", data, "--clip", clip, "--bundle", str(bundle.path), "--rates", "low"]
    asked += ["--adapter", str(tmp_path / "adapter")]
    code, document, err = run(capsys, *asked, "--decoder", str(decoder.path))
    assert code == 0, err
    assert [row["codec"] for row in document["results"]] == ["uncompressed", "tiny", "tiny+adapter"]
    (row,) = document["adapter"]["rates"]
    assert row["top1_adapted"] == document["results"][2]["top1"]
    assert document["decoder"]["sha256"] == decoder.digest
    assert "rates" not in document["decoder"]  # the gain is the adapter's
    code, _, err = run(capsys, *asked)
    assert code == 1
    assert "was trained on pictures of another decoder" in err


def test_rate_accuracy_keeps_points_with_and_without_it(words, tiny_bundle_with_decoder, tmp_path, capsys):
    out = tmp_path / "out.json"
    more = ["--families", str(tiny_bundle_with_decoder.path), "--peers", "", "--prompt-set", "1", "--json", str(out)]
    code, document, err = run(capsys, "rate-accuracy", *words, *more)
    assert code == 0, err
    rows = {(row["codec"], row["rate"]): row for row in document["points"]}
    plain, adapted = rows["tiny", "low"], rows["tiny+adapter", "low"]
    assert ("tiny+adapter", "mid") not in rows
    assert plain["bytes_mean"] == adapted["bytes_mean"]
    assert plain["psnr_db"] == adapted["psnr_db"]  # the same pictures, seen otherwise
    assert abs(plain["pooled_cosine"] - adapted["pooled_cosine"]) > 1e-3
    point = json.loads(next((Path(f"{out}.points") / "rate-accuracy").glob("*tiny+adapter-low*")).read_text())
    assert point["wire_disagreements"] == 0  # the server's answers are those of the adapted tower here
    (row,) = document["adapter"]["codecs"]["tiny"]["rates"]
    assert row["gain"] == pytest.approx(adapted["top1"] - plain["top1"], abs=1e-4)


def test_an_adapter_of_nothing_that_is_measured_is_refused(words, capsys):
    code, document, err = run(capsys, "eval", *words, "--bundle", "layered")
    assert (code, document) == (1, None)
    assert "measure that bundle" in err
