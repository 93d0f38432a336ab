"""A whole study on a tiny bundle and CLIP: again it measures nothing, killed it loses one point, its report repeats."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.test_rate_accuracy import KEYS, write_pack
from tests.cloud.tiny_clip import write_tiny_clip

pytest.importorskip("torch")
pytest.importorskip("plotly")

from benchmarks import cli
from benchmarks.codecs.grid import fixed_rungs
from benchmarks.judges.judge import Judge
from benchmarks.report.page import write_study_report
from benchmarks.report.stamp import unchanged
from benchmarks.results.store import ResultsError, point_paths, read_points
from benchmarks.study import experiments
from benchmarks.study import timing as timing_study
from benchmarks.study.examples import PHOTOS
from benchmarks.study.timing import TimingPlan
from benchmarks.timing.throughput import Rounds
from tests.waiting import until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THINWIRE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        # Links of half a minute are test_links.py's; here a study has a point of each codec on none
        patch.setitem(timing_study.PLANS, "quick", TimingPlan(2, 1, ("none",), (), throughput=Rounds(1, 0.1)))
        yield


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny_bundle_with_decoder) -> list[str]:
    clip = write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-random-clip")
    packs = tmp_path_factory.mktemp("packs")
    judge = Judge(str(clip), "cpu")
    for name in ("one", "two"):
        write_pack(packs / name, judge)
    options = ["--clip", str(clip), "--families", str(tiny_bundle_with_decoder.path), "--peers", "jpeg,webp"]
    return ["study", "--preset", "quick", "--data-dir", str(packs), *options, "--limit", "6"]


@pytest.fixture(scope="module")
def out(tmp_path_factory, words) -> Path:
    folder = tmp_path_factory.mktemp("study") / "out"
    assert cli.main([*words, "--out", str(folder)]) == 0
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


RUNGS = {name: len(rungs[::3]) for name, rungs in fixed_rungs().items()}
POINTS = 1 + 3 + RUNGS["jpeg"] + RUNGS["webp"]  # reference, rates of the bundle, rungs of two peers
TIMED = {"latency": 3, "throughput": 1, "energy": 6}
DOMAIN_POINTS = 1 + 3 + RUNGS["jpeg"]  # of peers jpeg alone
TRICKS = 2 * (1 + 3 + 2)  # of two sets: reference, rates, two JPEGs


def test_a_study_again_measures_nothing_and_writes_the_same_bytes(out, words, capsys):
    before = bytes_of(out)
    assert cli.main([*words, "--out", str(out)]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["experiments"]["rate-accuracy"]["points"] == 2 * POINTS
    assert {name: line["experiments"][name]["points"] for name in TIMED} == TIMED
    assert line["experiments"]["domains"]["points"] == DOMAIN_POINTS
    assert line["experiments"]["tricks"]["points"] == TRICKS
    told = json.loads((out / "findings.json").read_text())
    assert told["points"]["rate-accuracy"] == 2 * POINTS
    assert {"critical-rate", "predictors", "prompts", "calibration", "tricks"} <= set(told["sections"])
    assert {each["measured"] for each in line["experiments"].values()} == {0}
    assert all(Path(path).is_file() for path in line["files"].values())
    assert {"report_html", "report_md", "results_csv"} <= set(line["files"])
    assert bytes_of(out) == before


def test_a_report_is_written_again_when_it_or_its_points_changed(out, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    page = unchanged(copy)["report_html"]
    assert page == copy / "report.html"
    (copy / "report.md").write_text("altered")
    assert unchanged(copy) is None
    shutil.copy(out / "report.md", copy / "report.md")
    assert unchanged(copy)
    point = point_paths(copy, "rate-accuracy")[0]
    point.write_text(point.read_text() + " ")
    assert unchanged(copy) is None
    assert unchanged(tmp_path / "none") is None


def test_a_reading_alone_needs_the_points_of_rate_accuracy(out, words, capsys):
    assert cli.main([*words, "--out", str(out), "--only", "critical-rate"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: each["measured"] for name, each in line["experiments"].items()} == {"rate-accuracy": 0}


def test_report_is_made_of_the_points_alone(out, tmp_path, capsys):
    for folder in (
        "examples",
        "rate-accuracy",
        "domains",
        "tricks",
        *TIMED,
    ):  # written in another order, at another place
        (tmp_path / "copy" / folder).mkdir(parents=True)
        for path in reversed(point_paths(out, folder)):
            shutil.copy(path, tmp_path / "copy" / folder / path.name)
    assert cli.main(["report", str(tmp_path / "copy")]) == 0
    assert bytes_of(tmp_path / "copy") == bytes_of(out)
    assert sum(path.suffix == ".json" for path in out.rglob("*")) == (
        2 * POINTS + PHOTOS + DOMAIN_POINTS + TRICKS + sum(TIMED.values()) + 2  # findings.json, report.json
    )


def test_results_have_the_promised_keys(out):
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (2 * POINTS + DOMAIN_POINTS) * 3
    assert KEYS | {"message_bytes_mean", "wire_bytes_mean", "ms_ssim", "margin", "mcnemar_p"} <= set(rows[0])
    assert {row["prompt_set"] for row in rows} == {"1", "7", "80"}
    for point in read_points(out, "rate-accuracy"):
        assert {"schema", "key", "testbed", "command", "seed", "n", "data", "measured_at", "images"} <= set(point)
        assert len(point["data"]["sha256"]) == 64


def test_only_and_wrong_names(words, tmp_path, capsys):
    assert cli.main([*words, "--out", str(tmp_path), "--only", "weather"]) == 1
    assert ", ".join(experiments.EXPERIMENTS) in capsys.readouterr().err
    assert cli.main([*words, "--out", str(tmp_path), "--data", "three"]) == 1
    assert "it holds one, two" in capsys.readouterr().err
    with pytest.raises(ResultsError, match="thinwire-bench study"):
        write_study_report(tmp_path / "empty")


def test_sigkill_at_any_moment_loses_one_point(words, tmp_path):
    """The real process, killed without a chance to clean up; what is there is whole, and a new run completes it."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.cli", *words, "--families", "", "--data", "one", "--out", str(out)]
    command += ["--only", "rate-accuracy"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: len(point_paths(out, "rate-accuracy")) >= 5 or process.poll() is not None, 120)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    kept = {path.name: path.read_bytes() for path in point_paths(out, "rate-accuracy")}
    assert len(read_points(out, "rate-accuracy")) == len(kept) >= 5  # all of them whole
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["experiments"]["rate-accuracy"]["measured"] == POINTS - 3 - len(kept)
    assert {name: (out / "rate-accuracy" / name).read_bytes() for name in kept} == kept


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium: apt-get install -y chromium")
def test_the_page_works_offline_in_a_browser(out, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with sync_api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1300, "height": 950}, offline=True)
        page = context.new_page()
        complaints: list[str] = []
        requests: list[str] = []
        page.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((out / "report.html").as_uri())
        page.wait_for_selector("#curve .scatterlayer .trace", timeout=60_000)
        box = page.locator("#curve .main-svg").first.bounding_box()
        assert box["width"] > 800
        assert box["height"] > 300
        assert box["y"] + box["height"] < 950  # on the first screen
        assert page.locator("#curve .scatterlayer .trace").count() == 3
        assert page.locator("#choose-prompts").input_value() == "7"
        assert "within 5 s" in page.locator("#links").inner_text()
        assert "served ÷ bare" in page.locator("#throughput").inner_text()
        assert "CPU-seconds" in page.locator("#energy").inner_text()
        for name in ("critical-rate", "predictors", "hierarchy", "prompts", "calibration", "tricks"):
            assert page.locator(f"#{name} h2").count() == 1
        charts = page.locator(".plot:not(#curve)")
        assert charts.count() > 5
        page.wait_for_function("[...document.querySelectorAll('.plot')].every((each) => each.querySelector('svg'))")
        assert page.locator("#examples img").count() >= 4
        assert page.evaluate("[...document.images].every((each) => each.complete && each.naturalWidth > 0)")
        rows = page.locator("#points-table tbody tr")
        before = rows.count()
        page.check("#choose-all")
        assert rows.count() > before
        page.uncheck("#choose-all")
        page.uncheck("#filters input[value=jpeg]")
        assert page.locator("#curve .scatterlayer .trace").count() == 2
        assert "JPEG" not in page.locator("#points-table tbody").inner_text()
        title = page.locator("#curve .ytitle").text_content()
        page.select_option("#choose-y", "pooled_cosine")
        assert page.locator("#curve .ytitle").text_content() != title
        shown = page.locator("#points-table tbody").inner_text()
        page.select_option("#choose-data", "1")
        assert page.locator("#points-table tbody").inner_text() != shown
        page.locator("#points-table th", has_text="rate").click()
        assert "↑" in page.locator("#points-table thead").inner_text()
        browser.close()
    assert complaints == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
    assert (out / "report.html").stat().st_size < 4_000_000
