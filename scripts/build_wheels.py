"""Builds wheels of thinwire for every system that has an ONNX Runtime, and the sdist, on one Linux machine.

    python scripts/build_wheels.py [--targets NAME ...] [--out dist]      (`make wheels`; needs pip's index)

The compiled coder (native/) is cross-compiled by zig's C compiler, which comes from PyPI as a wheel, against the stable
ABI of Python 3.11: one wheel a system serves Python 3.11 and later. The wheel for any system holds no compiled part and
codes in plain Python. Each wheel is checked: tags, contents, processor, symbols of the C library, the stable ABI.
32-bit ARM is not among them: ONNX Runtime has no wheels for it. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.edge_size import build_wheel, copy_source, run  # noqa: E402
from setup import SOURCES, source_hash  # noqa: E402

TOOLS = ("ziglang==0.17.1", "wheel==0.48.0", "auditwheel==6.8.2", "abi3audit==0.0.26", "setuptools==84.2.1")
TOOLS_ENV = Path.home() / ".cache" / "thinwire" / f"wheel-tools-{sysconfig.get_python_version()}"


@dataclass(frozen=True)
class Target:
    """A system. zig: its name there; tag: the wheel's platform; machine: what `file` formats call the processor."""

    zig: str
    tag: str
    machine: str
    suffix: str = ".abi3.so"
    flags: tuple[str, ...] = ()


MAC = ("-undefined", "dynamic_lookup")  # Python's functions come from the process that loads the module
TARGETS = {
    "manylinux-x86_64": Target("x86_64-linux-gnu.2.17", "manylinux2014_x86_64.manylinux_2_17_x86_64", "EM_X86_64"),
    "manylinux-aarch64": Target("aarch64-linux-gnu.2.17", "manylinux2014_aarch64.manylinux_2_17_aarch64", "EM_AARCH64"),
    "musllinux-x86_64": Target("x86_64-linux-musl", "musllinux_1_2_x86_64", "EM_X86_64"),
    "musllinux-aarch64": Target("aarch64-linux-musl", "musllinux_1_2_aarch64", "EM_AARCH64"),
    "macos-arm64": Target("aarch64-macos.11.0", "macosx_11_0_arm64", "arm64", flags=MAC),
    "macos-x86_64": Target("x86_64-macos.11.0", "macosx_11_0_x86_64", "x86_64", flags=MAC),
    "windows-x86_64": Target("x86_64-windows-gnu", "win_amd64", "AMD64", ".pyd"),
}
BEHIND_MACROS = {"_Py_Dealloc", "_PyArg_ParseTuple_SizeT", "_Py_BuildValue_SizeT"}
BEHIND_MACROS |= {"PyEval_SaveThread", "PyEval_RestoreThread"}  # what module.c calls without naming it
MAGIC = {"macos": b"\xcf\xfa\xed\xfe", "windows": b"MZ"}


def tools() -> Path:
    """The Python that has the compiler and the checkers, installed at the first call."""
    python = TOOLS_ENV / "bin" / "python"
    stamp = TOOLS_ENV / ".ready"
    if not stamp.is_file() or stamp.read_text() != "\n".join(TOOLS):
        run([sys.executable, "-m", "venv", "--clear", TOOLS_ENV], "making a place for the tools")
        run([python, "-m", "pip", "install", "--quiet", *TOOLS], "installing the C compiler (about 450 MB)")
        stamp.write_text("\n".join(TOOLS))
    return python


def headers(folder: Path) -> Path:
    """Python's headers with a pyconfig.h that asks the compiler what it compiles for."""
    include = folder / "include"
    shutil.copytree(sysconfig.get_path("include"), include)
    shutil.copy(ROOT / "native" / "cross" / "pyconfig.h", include / "pyconfig.h")
    return include


def compile_coder(python: Path, target: Target, include: Path, folder: Path) -> Path:
    """The module for a target."""
    out = folder / f"_coder{target.suffix}"
    zig = [python, "-m", "ziglang"]
    extra = [*target.flags]
    if target.suffix == ".pyd":
        extra.append(python3_library(zig, folder))
    command = [*zig, "cc", "-target", target.zig, "-shared", "-fPIC", "-O3", "-std=c11", "-g0", f"-I{include}"]
    command += [f'-DTHINWIRE_SOURCE="{source_hash()}"', *(ROOT / source for source in SOURCES), *extra, "-o", out]
    run(command, f"compiling for {target.zig}")
    return out


def python3_library(zig: list, folder: Path) -> Path:
    """An import library of python3.dll with the names of the stable ABI that native/module.c uses."""
    text = (ROOT / "native" / "module.c").read_text()
    names = set(re.findall(r"\b(?:PyExc_\w+|Py[A-Z]\w*_\w+|PyModuleDef_Init)\b", text))
    names |= BEHIND_MACROS
    lines = [f"  {name} DATA" if re.match(r"PyExc_|\w+_Type$", name) else f"  {name}" for name in sorted(names)]
    (folder / "python3.def").write_text("\n".join(["LIBRARY python3.dll", "EXPORTS", *lines, ""]))
    library = folder / "python3.lib"
    run([*zig, "dlltool", "-m", "i386:x86-64", "-d", folder / "python3.def", "-l", library], "naming python3.dll")
    return library


def pack(python: Path, pure: Path, module: Path, target: Target, out: Path, folder: Path) -> Path:
    """The wheel for any system plus the compiled module, under the target's tags."""
    tree = folder / "tree"
    with zipfile.ZipFile(pure) as archive:
        archive.extractall(tree)
    shutil.copy(module, tree / "thinwire")
    metadata = next(tree.glob("*.dist-info")) / "WHEEL"
    lines = [line for line in metadata.read_text().splitlines() if not line.startswith(("Tag:", "Root-Is-Purelib:"))]
    lines += ["Root-Is-Purelib: false", *(f"Tag: cp311-abi3-{tag}" for tag in target.tag.split("."))]
    metadata.write_text("\n".join(line for line in lines if line) + "\n")
    before = set(out.glob("*.whl"))
    run([python, "-m", "wheel", "pack", tree, "-d", out], f"packing the wheel for {target.tag}")
    made = set(out.glob("*.whl")) - before
    return made.pop() if made else next(out.glob(f"*-abi3-{target.tag}.whl"))


def faults(python: Path, wheel: Path, name: str) -> list[str]:
    """What is wrong with a finished wheel, one line each."""
    target, found = TARGETS[name], []
    if not wheel.name.endswith(f"-cp311-abi3-{target.tag}.whl"):
        found.append(f"its name has other tags than {target.tag}")
    with zipfile.ZipFile(wheel) as archive:
        modules = [entry for entry in archive.namelist() if entry.startswith("thinwire/_coder")]
        if modules != [f"thinwire/_coder{target.suffix}"]:
            return [*found, f"it holds {modules}"]
        data = archive.read(modules[0])
    if source_hash().encode() not in data:
        found.append("its coder is of other sources")
    system = name.split("-")[0]
    if system in MAGIC and not data.startswith(MAGIC[system]):
        found.append(f"its coder is not a module of {system}")
    if system.endswith("linux"):
        found += _linux_faults(python, wheel, target)
    audit = subprocess.run([python, "-m", "abi3audit", "--strict", wheel], capture_output=True, text=True)
    if audit.returncode != 0:
        found.append(f"abi3audit: {(audit.stdout + audit.stderr)[-500:]}")
    return [f"{wheel.name}: {fault}" for fault in found]


ELF = """
import io, json, sys, zipfile
from elftools.elf.elffile import ELFFile
with zipfile.ZipFile(sys.argv[1]) as archive:
    elf = ELFFile(io.BytesIO(archive.read("thinwire/_coder.abi3.so")))
    needs = elf.get_section_by_name(".gnu.version_r")
    versions = [v.name for _, names in needs.iter_versions() for v in names] if needs else []
    libraries = [t.needed for t in elf.get_section_by_name(".dynamic").iter_tags() if t.entry.d_tag == "DT_NEEDED"]
    print(json.dumps({"machine": elf["e_machine"], "versions": versions, "libraries": libraries}))
"""


def _linux_faults(python: Path, wheel: Path, target: Target) -> list[str]:
    elf = json.loads(run([python, "-c", ELF, wheel], "reading its symbols"))
    found = []
    if elf["machine"] != target.machine:
        found.append(f"its coder is for {elf['machine']}")
    glibc = [tuple(map(int, name.split("_")[1].split("."))) for name in elf["versions"] if name.startswith("GLIBC_")]
    limit = (0,) if "musl" in target.tag else (2, 17)
    if any(version > limit for version in glibc):
        found.append(f"its coder needs {elf['versions']}")
    strangers = [name for name in elf["libraries"] if not name.startswith(("libc.", "ld-linux", "libm."))]
    if strangers:
        found.append(f"its coder needs {strangers}")
    return found


def build_sdist(python: Path, out: Path, folder: Path) -> Path:
    source = copy_source(folder / "sdist")
    code = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(out)!r}))"
    done = subprocess.run([python, "-c", code], cwd=source, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"build_wheels: the sdist failed:\n{done.stderr[-2000:]}")
    return out / done.stdout.splitlines()[-1]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", choices=[*TARGETS, "any", "sdist"], metavar="NAME", help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    args = parser.parse_args(argv)
    wanted = args.targets or [*TARGETS, "any", "sdist"]
    out = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    python, made, wrong = tools(), {}, []
    with tempfile.TemporaryDirectory(prefix="thinwire-wheels-") as name:
        folder = Path(name)
        pure, include = build_wheel(folder, native=False), headers(folder)
        for target in (each for each in TARGETS if each in wanted):
            place = folder / target
            place.mkdir()
            module = compile_coder(python, TARGETS[target], include, place)
            made[target] = pack(python, pure, module, TARGETS[target], out, place)
            wrong += faults(python, made[target], target)
            shutil.rmtree(place)
        if "any" in wanted:
            made["any"] = Path(shutil.copy(pure, out))
        if "sdist" in wanted:
            made["sdist"] = build_sdist(python, out, folder)
    for fault in wrong:
        print(f"build_wheels: {fault}", file=sys.stderr)
    report = {each: {"file": str(path), "mb": round(path.stat().st_size / 1e6, 1)} for each, path in made.items()}
    print(json.dumps({"made": report, "faults": len(wrong)}), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
