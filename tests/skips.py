"""The tests that `.ci/run` may skip, each with its reason. Any other skip fails the run: a tool that is missing there
would otherwise hide its tests for ever.

`ONLY_LISTED_SKIPS=1` turns the check on; `make test` alone leaves it off, as a developer may lack chromium.
"""

from __future__ import annotations

import re

import pytest

SWITCH = "ONLY_LISTED_SKIPS"
# {pattern of the skipped test's node id: why it may be skipped}
ALLOWED = {
    r"tests/cloud/test_ray\.py.*": "the extra `ray` takes 250 MB and is not in the lock",
    r"tests/export/test_hub\.py.*": "the extra `datasets` takes 100 MB and is not in the lock",
    r"tests/cloud/test_cuda_graphs\.py::test_a_real_cuda_graph_.*": "needs a CUDA device",
    r"tests/cloud/test_cli\.py::test_cuda_by_name_without_cuda_.*": "shows the error of a machine without CUDA",
    r"tests/thinwire/test_(constriction|entropy)\.py.*": "no constriction for this processor, or no C compiler",
    r"tests/test_wheels\.py.*": "pip's index cannot be reached, or another processor",
    r"tests/edge/test_encoder\.py::test_a_provider_that_does_not_run_.*": "shows the error of a runtime without CUDA",
    r"tests/edge/test_spool\.py::test_a_disk_.*": "mounts a file system: some containers may not",
    r"tests/test_user_mistakes\.py::test_a_disk_.*": "mounts a file system: some containers may not",
    r"tests/edge/test_memory_limit\.py.*": "makes a control group: some containers may not",
    r"tests/test_field_promises\.py::test_a_(full|read_only)_disk_.*": "mounts a file system: some containers may not",
}


class SkipWatch:
    """A pytest plugin: collects skips of tests and of whole modules, and fails a run with one that is not listed."""

    def __init__(self) -> None:
        self.unlisted: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._note(report)

    def _note(self, report) -> None:
        if not any(re.fullmatch(pattern, report.nodeid) for pattern in ALLOWED):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.unlisted.append((report.nodeid, reason))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unlisted and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unlisted:
            terminalreporter.section("skips that tests/skips.py does not list", red=True)
        for node, reason in self.unlisted:
            terminalreporter.line(f"{node}: {reason}")
