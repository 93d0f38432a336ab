"""Builds dist/thinwire-edge.pyz: the whole edge client in one file that needs a Python 3.11+ and no package.

    python scripts/edge_binary.py [OUT]     (`make edge-binary`; needs pip's index)

A shiv archive (https://shiv.readthedocs.io): the wheels of the `edge` extra and thinwire itself, without the cloud's
weights, which unpacks itself to ~/.shiv (or $SHIV_ROOT) at its first start, since C extensions cannot be loaded from a
zip. It is for the system and Python version that built it. The build ends with a try in an empty environment: no
packages, no PYTHONPATH, another folder. The last line of stdout is JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.edge_size import CLOUD_ONLY, build_wheel, run  # noqa: E402

SHIV = "shiv==1.0.8"
ROOMS_OF_OTHERS = ("cloud", "export", "benchmarks", "synthesis")
CLOUD_FOLDERS = ("clip-lite", "adapters", "graphs")  # folders of thinwire/models that a device has no use for


def install(wheel: Path, site: Path) -> None:
    """The edge extra and thinwire in a folder, without what only the cloud uses."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", site, "--no-compile"]
    run([*pip, "-c", ROOT / "requirements.lock", f"{wheel}[edge]"], "collecting the edge's packages")
    for room in ROOMS_OF_OTHERS:
        shutil.rmtree(site / room, ignore_errors=True)
    for name in CLOUD_FOLDERS:
        shutil.rmtree(site / "thinwire" / "models" / name, ignore_errors=True)
    for name in CLOUD_ONLY:
        for path in site.rglob(name):
            path.unlink()


def try_out(binary: Path, folder: Path) -> dict[str, object]:
    """Starts it twice with a Python that has no packages (-I also hides the user's), the second time already unpacked.

    Raises `SystemExit` with what it said when it fails.
    """
    env_dir = folder / "bare"
    run([sys.executable, "-m", "venv", "--without-pip", env_dir], "making an empty environment")
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "SHIV_ROOT": str(folder / "shiv")}
    words = [env_dir / "bin" / "python", "-I", binary, "bench", "--frames", "20"]
    took = []
    for _ in range(2):
        started = time.monotonic()
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment, cwd=folder)
        took.append(time.monotonic() - started)
        if done.returncode != 0:
            raise SystemExit(f"edge_binary: it does not run: {(done.stdout + done.stderr)[-2000:]}")
    report = json.loads(done.stdout.splitlines()[-1])
    return {
        "first_start_s": round(took[0], 2),
        "later_start_s": round(took[1], 2),
        "packet_bytes": report["packet_bytes"],
        "unpacked_mb": round(
            sum(path.stat().st_size for path in (folder / "shiv").rglob("*") if path.is_file()) / 1e6, 1
        ),
    }


def main() -> int:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist" / "thinwire-edge.pyz").absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="thinwire-edge-binary-") as name:
        folder = Path(name)
        site = folder / "site"
        install(build_wheel(folder), site)
        tools = folder / "tools"
        run([sys.executable, "-m", "venv", tools], "making a place for shiv")
        run([tools / "bin" / "python", "-m", "pip", "install", "--quiet", SHIV], "installing shiv")
        shiv = [tools / "bin" / "python", "-m", "shiv", "--site-packages", site, "--compressed", "--reproducible"]
        python = "/usr/bin/env python3"
        run([*shiv, "-p", python, "-e", "edge.cli:main", "-o", out], "packing")
        report = {"binary": str(out), "binary_mb": round(out.stat().st_size / 1e6, 1), **try_out(out, folder)}
    print(json.dumps(report), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
