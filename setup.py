"""The compiled coder, `thinwire._coder`; everything else about the package stands in pyproject.toml.

Without a C compiler or Python's headers the build goes on and the package codes in plain Python (thinwire/entropy.py).
THINWIRE_NATIVE=0 leaves the compiled part out.
"""

import hashlib
import os
import sys
from pathlib import Path

NATIVE = Path(__file__).resolve().parent / "native"
SOURCES = [f"native/{name.name}" for name in sorted(NATIVE.glob("*.c")) if not name.name.startswith("fuzz")]
FLAGS = ["/O2", "/std:c11"] if sys.platform == "win32" else ["-O3", "-std=c11"]


def source_hash() -> str:
    """Stands in the build as `_coder.SOURCE`, so that a build of older sources is noticed."""
    parts = [path.read_bytes() for path in sorted(NATIVE.glob("*.[ch]"))] + [" ".join(FLAGS).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def extensions() -> list:
    from setuptools import Extension

    if os.environ.get("THINWIRE_NATIVE") == "0":
        return []
    return [
        Extension(
            "thinwire._coder",
            SOURCES,
            depends=[f"native/{header.name}" for header in sorted(NATIVE.glob("*.h"))],
            define_macros=[("THINWIRE_SOURCE", f'"{source_hash()}"')],
            extra_compile_args=FLAGS,
            py_limited_api=True,
            optional=True,
        )
    ]


if __name__ == "__main__":
    from setuptools import setup

    built = extensions()
    setup(ext_modules=built, options={"bdist_wheel": {"py_limited_api": "cp311"}} if built else {})
