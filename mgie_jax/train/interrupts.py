"""SIGINT and SIGTERM while training: notes taken of them, for the loop to read between updates."""

import os
import signal

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The run was told to leave (SIGTERM): it has saved, and goes on when it is started again."""


class Interrupts:
    """A context manager within which the two signals end nothing by themselves; a second Ctrl-C does.

    Several processes must all stop at the same update. There JAX's own handler of SIGTERM stays in place: its
    coordination service lets the processes agree on an update that none has passed (asking it costs no message
    between them). Ctrl-C is turned into it.
    """

    def __enter__(self):
        self._received = None
        self._together = jax.process_count() > 1
        signals = [signal.SIGINT] if self._together else [signal.SIGINT, signal.SIGTERM]
        self._before = {number: signal.signal(number, self._note) for number in signals}
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self._received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
            if self._together:
                os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether the run is to save and stop now; to be asked once after every update, by all processes."""
        if self._together:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None

    def error(self) -> BaseException:
        """What to raise once the run has saved."""
        return KeyboardInterrupt() if self._received == signal.SIGINT else Preempted()
