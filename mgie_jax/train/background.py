"""Work that a training step on CPU goes before: one thread of low priority."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

NICE = 10  # Linux then gives a thread about a tenth of a core that others want too, and an idle one whole


class Background:
    """Does one thing at a time, in a thread that mostly runs when nothing else wants the processor.

    Threads that it starts, and those of libraries whose first use is here, inherit the priority.
    """

    def __init__(self):
        self._thread = ThreadPoolExecutor(1, "mgie-background", initializer=_step_back)
        self._task: Future | None = None

    def start(self, task: Callable[[], None]) -> None:
        """Begins `task` once the one before has ended; raises what that one raised."""
        self.wait()
        self._task = self._thread.submit(task)

    def wait(self) -> None:
        """Until the task has ended; raises what it raised, once."""
        task, self._task = self._task, None
        if task is not None:
            task.result()

    def close(self) -> None:
        """As `wait`; nothing can be started afterwards."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def _step_back() -> None:
    # Elsewhere a priority belongs to the process, and this one's is not to change.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
