"""What `scripts/arm64_trial.sh` checks, once the arm64 root filesystem and the wheel are there: arm64_trial.py ROOT

The last line of stdout is JSON: what was tried, the share of equal symbols and packets, the disk and memory it took.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.data.photos import LABELS, wheel_photos  # noqa: E402
from benchmarks.rig.server_process import running_service  # noqa: E402
from thinwire.bundle import load_bundle, shipped_bundles  # noqa: E402
from thinwire.packet import Packet  # noqa: E402

VENV = "/opt/thinwire"
WORDS = ",".join(LABELS)
KEPT = {key: os.environ[key] for key in os.environ if key.startswith("PIP_") and key != "PIP_FIND_LINKS"}
STEP_S = 600
ROOMS = ("thinwire", "edge", "cloud", "synthesis", "export", "benchmarks")
TOOLS = ("pip", "setuptools", "_distutils_hack", "pkg_resources")


class Arm64:
    """Commands inside the root filesystem."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {**KEPT, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}

    def start(self, *words: object, **options) -> subprocess.Popen:
        command = ["chroot", self.root, *words]
        return subprocess.Popen(list(map(str, command)), env=self.environment, text=True, **options)

    def run(self, *words: object, codes: tuple[int, ...] = (0,)) -> str:
        """stdout of a command; ends the trial with its stderr on any other exit code, or when it takes too long."""
        process = self.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=STEP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise SystemExit(f"arm64_trial: {' '.join(map(str, words))}: no end after {STEP_S} s") from None
        if process.returncode not in codes:
            raise SystemExit(f"arm64_trial: {' '.join(map(str, words))}: {process.returncode}\n{(out + err)[-3000:]}")
        return out

    def edge(self, *words: object) -> str:
        return self.run(f"{VENV}/bin/thinwire-edge", *words)


def say(text: str) -> None:
    print(f"arm64_trial: {text}", file=sys.stderr, flush=True)


def install(arm: Arm64) -> dict[str, object]:
    """The extra `edge` as a user installs it; what it holds and weighs."""
    wheel = next((arm.root / "opt" / "wheels").glob("thinwire-*_aarch64.whl"))
    if not (arm.root / VENV[1:] / "bin" / "pip").exists():
        arm.run("python3", "-m", "venv", VENV)
    say(f"pip install {wheel.name}[edge]")
    arm.run(f"{VENV}/bin/pip", "uninstall", "--quiet", "--yes", "thinwire")
    arm.run(f"{VENV}/bin/pip", "install", "--quiet", "--only-binary=:all:", f"/opt/wheels/{wheel.name}[edge]")
    listing = json.loads(arm.run(f"{VENV}/bin/pip", "list", "--format=json"))
    site = next((arm.root / VENV[1:] / "lib").glob("python3*/site-packages"))
    sizes = [path for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    own = [path for path in sizes if path.relative_to(site).parts[0].split("-")[0] in ROOMS]
    tools = [path for path in sizes if path.relative_to(site).parts[0].split("-")[0] in TOOLS]
    total, ours, pip = (sum(path.stat().st_size for path in each) / 1e6 for each in (sizes, own, tools))
    return {
        "packages": {each["name"]: each["version"] for each in listing if each["name"] not in ("pip", "setuptools")},
        "edge_packages_no_pyc_mb": round(total - ours - pip, 1),
        "thinwire_mb": round(ours, 1),
    }


def describe(arm: Arm64) -> dict[str, str]:
    code = (
        "import platform, thinwire.bundle as b; c = b.load_bundle('layered').coder;"
        "print(platform.machine(), platform.python_version(), platform.libc_ver()[1], c.form)"
    )
    machine, python, glibc, form = arm.run(f"{VENV}/bin/python", "-c", code).split()
    if (machine, form) != ("aarch64", "compiled"):
        raise SystemExit(f"arm64_trial: expected a compiled coder on aarch64, found {form} on {machine}")
    return {"machine": machine, "python": python, "glibc": glibc, "coder": form}


def compare_packets(arm: Arm64, photos: Path) -> dict[str, object]:
    """Every photograph as a packet of every bundle's best rate, fp32, here and there."""
    found: dict[str, object] = {}
    for name in shipped_bundles():
        bundle = load_bundle(name)
        rate = list(bundle.rates)[-1]
        options = ("--bundle", name, "--rate", rate, "--precision", "fp32")
        there, here = arm.root / "tmp" / f"there-{name}", arm.root / "tmp" / f"here-{name}"
        arm.edge("encode", "/tmp/photos", "-o", f"/tmp/there-{name}", *options)
        command = [sys.executable, "-m", "edge.cli", "encode", photos, "-o", here, *options]
        subprocess.run(list(map(str, command)), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        equal_packets, equal_symbols, wrong = 0, [], []
        for path in sorted(here.rglob("*.twp")):
            ours, theirs = path.read_bytes(), (there / path.relative_to(here)).read_bytes()
            a, b = (bundle.decode(Packet.from_bytes(data)) for data in (ours, theirs))
            equal_packets += ours == theirs
            equal_symbols.append(float((a == b).mean()))
            if bundle.coder.exact:  # equal symbols must be equal bytes, and our coder must write theirs
                sound = (a == b).all() == (ours == theirs) and bundle.encode(b, rate).to_bytes() == theirs
            else:  # libaom may write another frame there, but that one must be packed here as it was there
                (payload,) = Packet.from_bytes(theirs).layers
                level, frame = bundle.coder.frame([payload])
                sound = bundle.coder.payload(frame, level) == payload
            if not sound:
                wrong.append(path.name)
        if wrong or not equal_symbols:
            raise SystemExit(f"arm64_trial: {name}: packets differ where symbols do not: {wrong}")
        found[name] = {
            "photos": len(equal_symbols),
            "equal_packets": equal_packets,
            "equal_symbols_share": round(float(np.mean(equal_symbols)), 7),
        }
    return found


def killed_and_resumed(arm: Arm64, address: str) -> dict[str, int]:
    """`run`, killed by SIGKILL once it has some answers, then run again: each photograph has one final line."""
    words = ["run", "/tmp/photos", "--labels", WORDS, "--out", "/tmp/answers.jsonl", "--spool", "/tmp/spool.db"]
    words += ["--server", address, "--in-flight", "1"]
    answers = arm.root / "tmp" / "answers.jsonl"
    for path in (answers, *answers.parent.glob("spool.db*")):
        path.unlink(missing_ok=True)
    process = arm.start(f"{VENV}/bin/thinwire-edge", *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + STEP_S
    while not (answers.is_file() and answers.read_bytes().count(b"\n") >= 2):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("arm64_trial: run ended, or answered nothing, before it could be killed")
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = answers.read_bytes().count(b"\n")
    arm.edge(*words)
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    keys = [line["key"] for line in lines if line["final"] and line["ok"]]
    wanted = len(wheel_photos())
    if len(keys) != wanted or len(set(keys)) != wanted:
        raise SystemExit(f"arm64_trial: {wanted} photographs, {len(keys)} final answers, {len(set(keys))} of them once")
    return {"answers_before_the_kill": before, "answers": len(keys), "twice": len(keys) - len(set(keys))}


def peak_memory(arm: Arm64, address: str) -> int:
    """Peak resident MB of `classify` as the emulator's process, its own 30 MB or so included."""
    command = f"{VENV}/bin/thinwire-edge classify /tmp/photos/chelsea.png --labels cat,dog --server {address}"
    code = f"import resource, subprocess; subprocess.run({command.split()!r}, check=True, capture_output=True); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    return round(int(arm.run("python3", "-c", code)) / 1000)


def main(root: str) -> int:
    arm = Arm64(Path(root))
    photos = arm.root / "tmp" / "photos"
    shutil.rmtree(photos, ignore_errors=True)
    photos.mkdir(parents=True)
    for photo in wheel_photos():
        (photos / photo.name).write_bytes(photo.data)
    report: dict[str, object] = {"installed": install(arm), **describe(arm)}
    say(f"{report['machine']}, Python {report['python']}, {report['coder']} coder: packets")
    report["packets"] = compare_packets(arm, photos)
    say("a server of this machine")
    with running_service(bundle="layered") as address:
        doctor = json.loads(arm.edge("doctor", "--server", address, "--json"))
        report["doctor"] = {each["name"]: each["status"] for each in doctor["checks"]}
        say(f"doctor: {report['doctor']}")
        lines = arm.edge("classify", "/tmp/photos", "--labels", WORDS, "--json", "--server", address).splitlines()
        truth = {photo.name: photo.label for photo in wheel_photos()}
        best = [json.loads(line) for line in lines]
        report["classified"] = len(best)
        report["right"] = sum(each["predictions"][0]["label"] == truth[Path(each["image"]).name] for each in best)
        say(f"classify: {report['right']} of {report['classified']} right")
        report["run"] = killed_and_resumed(arm, address)
        report["peak_rss_emulated_mb"] = peak_memory(arm, address)
    print(json.dumps(report), flush=True)
    return 0 if doctor["healthy"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
