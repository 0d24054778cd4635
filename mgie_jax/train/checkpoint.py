"""Training checkpoints: the trainable tree, its optimizer and average, by orbax; never frozen weights."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from mgie_jax.train.state import TrainState


class Checkpoints:
    """The numbered checkpoints of one work folder, saved in the background, the newest `keep` kept."""

    def __init__(self, workdir: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager((Path(workdir) / "checkpoints").absolute(), options=options)

    def latest(self) -> int | None:
        """Number of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Starts saving `state` under its step number; does nothing if that step is already saved."""
        step = int(state.step)
        if step != self.latest():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, with the structure and placement of `like`.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: it holds other parameters or another optimizer than `like`.
        """
        if self.latest() is None:
            raise FileNotFoundError(f"no checkpoint in {self._manager.directory}")
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return self._manager.restore(self.latest(), args=ocp.args.StandardRestore(shapes))
        except ValueError as error:  # orbax's message lists every parameter there is
            raise ValueError(
                f"{self._manager.directory / str(self.latest())} was saved by a run with another model, `trainable` or "
                "`learning_rate`; go on with that run's config, or begin in another workdir"
            ) from error

    def close(self) -> None:
        """Waits for a save in progress."""
        self._manager.wait_until_finished()
        self._manager.close()
