"""Common ground of all tests: one cache for the session, no display, and skips that are counted.

A skip is a hole in the test. Each has to say why, in words this list knows, and no more often than here;
anything else fails the session.
"""
import os
import re
import tempfile

import matplotlib
import numpy as np
import pytest

matplotlib.use("agg")  # here only: $MPLBACKEND would keep pictures out of the jobs' notebooks
if "STPROMPT_CACHE" not in os.environ:  # `make test` sets one that lasts
    _cache = tempfile.TemporaryDirectory(prefix="stprompt-test-cache-")
    os.environ["STPROMPT_CACHE"] = _cache.name


def pictures(n, seed=0, size=(48, 64)):
    "An orange bar that moves before noise, uint8 [H, W, 3] each."
    rng = np.random.default_rng(seed)
    for i in range(n):
        image = rng.integers(0, 60, (*size, 3), np.uint8)
        image[10:30, i % 40:i % 40 + 12] = (240, 140, 20)
        yield image


ALLOWED_SKIPS = {  # words in the reason: how often at most
    r"\.\./shared": 40,  # research data that is not part of the project
    r"\b(GPU|CUDA|accelerator)\b": 10,
    r"Chromium|browser": 2,
    r"make site": 2,  # Sphinx is installed on the first `make site`
    r"STPROMPT_SLOW": 2,
}

def overdrawn(reasons, allowed=ALLOWED_SKIPS):
    "Reasons that no allowance covers, or covers fewer times than they occur."
    left, wrong = dict(allowed), []
    for reason in reasons:
        fits = next((p for p in left if re.search(p, reason) and left[p] > 0), None)
        if fits is None: wrong.append(reason)
        else: left[fits] -= 1
    return wrong

_reasons = []

def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        _reasons.append(report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr))

def pytest_collectreport(report):
    if report.skipped:
        _reasons.append(report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    if exitstatus == 0 and overdrawn(_reasons): session.exitstatus = 1

def pytest_terminal_summary(terminalreporter):
    if _reasons: terminalreporter.write_line(f"{len(_reasons)} skipped: {'; '.join(sorted(set(_reasons)))}")
    for reason in sorted(set(overdrawn(_reasons))):
        terminalreporter.write_line(f"SKIP NOT ALLOWED (tests/conftest.py): {reason}", red=True)


@pytest.fixture
def one_thread():
    "The test runs on one thread, so that small products do not wait for each other."
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
