"""Fixtures that tests of several rooms share."""

from __future__ import annotations

import os

import pytest

from scripts.build_native import build
from tests.skips import SWITCH, SkipWatch
from tests.tiny_bundle import make_tiny_bundle


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return  # xdist's workers report to the main process, which has built the coder before they start
    build()  # tests run the compiled coder where it can be built, also when pytest was not started by make
    if os.environ.get(SWITCH):
        config.pluginmanager.register(SkipWatch())


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    """A valid bundle for 64x64 views, without a decoder; see tests/tiny_bundle.py. Do not alter its files."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_bundle_with_decoder(tmp_path_factory):
    """The same with a random, test-only decoder (needs torch)."""
    pytest.importorskip("torch")
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", with_decoder=True)
