"""The table that ends `make parity`."""

import time

import pytest

ROWS = pytest.StashKey[list]()


@pytest.fixture
def assert_parity(request):
    """`assert_parity(what, error)` asserts that a relative error is within 1e-4 and puts it into the table."""
    start = time.monotonic()

    def note(what: str, error: float) -> None:
        seconds = time.monotonic() - start
        request.config.stash.setdefault(ROWS, []).append(f"{what:<52} {error:>9.1e} {seconds:>8.0f} s")
        assert error <= 1e-4, f"{what}: relative error {error:.2e}"

    return note


def pytest_terminal_summary(terminalreporter, config):
    if rows := config.stash.get(ROWS, []):
        terminalreporter.section("largest relative error against PyTorch, float32 (at most 1e-4)")
        for row in rows:
            terminalreporter.write_line(row)
