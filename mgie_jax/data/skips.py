"""How many examples had to be skipped, and when that is too many."""

from collections import deque

from mgie_jax.data.pipeline import HostBatch
from mgie_jax.data.records import DataSetError

JUDGED_FROM = 1000  # examples: the share of fewer says little
NAMED = 3  # ids an error mentions


class Skips:
    """Examples skipped on this host since the run began or was resumed.

    Args:
      share: how many of all examples looked at may be skipped, 0 to 1 (`config.max_skipped`).
    """

    def __init__(self, share: float):
        if not 0 <= share <= 1:
            raise ValueError(f"the share that may be skipped must be between 0 and 1, not {share}")
        self.skipped = self.used = 0
        self._share, self._last = share, deque(maxlen=NAMED)

    def add(self, batch: HostBatch) -> None:
        """Count a batch.

        Raises:
          DataSetError: more than the share was skipped of what was looked at, or of the first `JUDGED_FROM`; names
            the last of them.
        """
        self.used += len(batch.ids)
        self.skipped += len(batch.skipped)
        self._last += [f"{id} ({reason})" for id, reason in batch.skipped]
        seen = self.used + self.skipped
        if self.skipped > self._share * max(seen, JUDGED_FROM):
            raise DataSetError(
                f"{self.skipped} of {seen} training examples had to be skipped, more than {self._share:.3g} of them; "
                f"the last: {'; '.join(self._last)}. All are in skipped.jsonl; config.max_skipped admits more"
            )
