"""How much memory something takes: of an accelerator's what it tells, of a CPU's what the process has resident."""

import ctypes
from collections.abc import Callable
from pathlib import Path


def resident(run: Callable[[], object]) -> dict[str, int]:
    """Peak bytes resident: "peak" since the process began, and "running" during one more `run`; 0 where not known.

    What has been freed is handed back first, as far as the C library does that (glibc).
    """
    peak = _peak()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak so far is forgotten
    except (OSError, AttributeError):
        run()
        return {"peak": peak, "running": 0}
    run()
    return {"peak": max(peak, _peak()), "running": _peak()}


def _peak() -> int:
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return 0
