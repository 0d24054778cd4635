"""Training checkpoints: all that a run needs to go on, written in the background; never frozen weights.

`WORKDIR/checkpoints/STEP/default/` holds the training state (orbax, OCDBT), `run.json` (the config, and where in the
data the run is) and SHA256SUMS over both. Orbax writes the folder under another name and renames it once it is whole;
in a bucket, under its own name, and puts `commit_success.txt` into it at the end, without which we too take it for
nothing. So a killed save leaves nothing that looks like a checkpoint, and the next run clears it away. The checksums
are for what happens afterwards: orbax restores wrong numbers from some files with flipped bytes, without a word. They
are made by the thread that writes.

Orbax copies the state to the host before a save returns, and prepares the rest in Python, a third of a second for the
bundled model; then its threads write. Where the one device is the CPU, they would all take time from the training
steps. There the copy is made here, which is quick, and all else is done when the processor has nothing better to do.
"""

import dataclasses
import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers, type_handlers

from mgie_jax.paths import AnyPath, absolute, files, is_remote, make_folder, move, remove, to_path
from mgie_jax.train.background import Background
from mgie_jax.train.state import TrainState
from mgie_jax.weights.atomic import SUMS, read_sums, sha256, write_sums, write_text

SAME_RUN = ("stage", "model", "seed", "batch_size", "data", "photos")
"""What a resumed run's config may not change: with another value it would not go on with the same examples. All else
(the mesh, workers, steps, ...) may be another; what gives the state another structure, the restoring itself refuses."""

RUN = "run.json"
_COMMITTED = "commit_success.txt"  # added by orbax when all else is written


class Checkpoints:
    """The checkpoints of one run, for the processes that train it: each calls the same methods in the same order.

    Opening them sets damaged newest ones aside, in `WORKDIR/damaged`, with a line on stderr that says which and why.
    Used as a context manager, it waits at its end for the save in progress.
    """

    def __init__(self, workdir: AnyPath, config: ml_collections.ConfigDict):
        """Reads `seed`, `batch_size`, `keep_checkpoints` and `keep_every` of the config, and records it all.

        Raises:
            ValueError: there are checkpoints, all of them damaged.
        """
        self._config = config
        self._folder = absolute(workdir) / "checkpoints"
        self.latest = _newest_whole(self._folder)
        keep = [checkpoint_managers.LatestN(config.keep_checkpoints)]
        if config.keep_every:
            keep.append(checkpoint_managers.EveryNSteps(config.keep_every))
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True,
                lightweight_initialize=True,
            ),
            item_handlers=_Handler(),
        )
        self._background = Background() if [device.platform for device in jax.devices()] == ["cpu"] else None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        try:
            if self._background is not None:
                self._background.close()
        finally:
            self._manager.close()

    def save(self, step: int, state: TrainState) -> None:
        """Starts to save `state`, which is at `step`; returns once the state may be donated.

        Does nothing if that step is saved already. What went wrong with the save before is raised here, or at the end.
        """
        if step == self.latest:
            return
        run = {
            "step": step,
            "examples": step * self._config.batch_size,  # read so far; see train/loop.py
            "seed": self._config.seed,  # of the keys, and of the data's order
            "config": json.loads(self._config.to_json_best_effort()),
        }
        if self._background is None:
            self._manager.save(step, args=_Save(state, run=run), force=True)
        else:
            copy = jax.tree.map(np.array, state)
            self._background.start(partial(self._save_whole, step, copy, run))
        self.latest = step

    def _save_whole(self, step: int, state: PyTree, run: dict) -> None:
        self._manager.save(step, args=_Save(jax.tree.map(jnp.asarray, state), run=run), force=True)
        self._manager.wait_until_finished()

    def restore(self, like: TrainState, shardings: TrainState | None = None) -> TrainState:
        """The newest state, wherever it was saved from, with the structure and dtypes of `like`.

        Args:
            like: a state, or shapes in its place.
            shardings: where it is to lie; None for the default device.

        Raises:
            ValueError: it was saved by another run: other examples, other parameters, another optimizer.
        """
        folder = self._folder / str(self.latest)
        before = json.loads((folder / "default" / RUN).read_text())["config"]
        for name in SAME_RUN:
            if before.get(name) != self._config.get(name):
                raise ValueError(
                    f"{folder} was saved with config.{name}={before.get(name)!r}, now it is "
                    f"{self._config.get(name)!r}; go on with that run's value, or begin in another workdir"
                )
        with ocp.PyTreeCheckpointer() as reader:
            there, here = _shapes(reader.metadata(folder / "default").item_metadata.tree), _shapes(like)
        if differing := sorted(name for name in there | here if there.get(name) != here.get(name)):
            name = differing[0]
            raise ValueError(
                f"{folder} was saved by a run with another model, `trainable`, `learning_rate` or `ema_decay`: {name} "
                f"has shape {there.get(name, 'none')} there, {here.get(name, 'none')} here; go on with that run's "
                "config, or begin in another workdir"
            )
        if shardings is None:
            default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            shardings = jax.tree.map(lambda _: default, like)
        shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings)
        args = _Restore(shapes, restore_args=ocp.checkpoint_utils.construct_restore_args(shapes))
        return self._manager.restore(self.latest, args=args)


def steps(workdir: AnyPath) -> list[int]:
    """Numbers of the checkpoints in a work folder, in order."""
    folder = to_path(workdir) / "checkpoints"
    found = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return sorted(int(path.name) for path in found if not is_remote(path) or (path / _COMMITTED).exists())


def read_config(workdir: AnyPath, step: int | None = None) -> ml_collections.ConfigDict:
    """The config a checkpoint (default: the newest) was saved with.

    Raises:
        ValueError: there is no such checkpoint, or it is damaged.
    """
    return ml_collections.ConfigDict(json.loads((_whole(workdir, step) / RUN).read_text())["config"])


def read_weights(workdir: AnyPath, step: int | None = None, ema: bool = False) -> dict:
    """The trained parameters in a checkpoint (default: the newest), or their averages, as nested dicts of NumPy arrays.

    Needs neither the optimizer nor the devices they were trained with.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or has no averages.
    """
    folder, part = _whole(workdir, step), "ema" if ema else "params"
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(folder).item_metadata.tree
        if not tree.get(part):
            raise ValueError(f"{folder} has no averaged weights: its run had ema_decay = 0")
        item = {part: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree[part])}
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item, restore_args=numpy, partial_restore=True)
        return reader.restore(folder, args=args)[part]


def fault(folder: AnyPath) -> str | None:
    """What is wrong with the files of a checkpoint, `folder` being its `default`; None if nothing is."""
    try:
        sums = read_sums(folder)
    except ValueError:
        return f"{SUMS} is damaged"
    if sums is None:
        return f"{SUMS} is missing"
    there = set(_files(folder))
    if missing := set(sums) - there:
        return f"{min(missing)} is missing"
    if unknown := there - set(sums):
        return f"{SUMS} does not list {min(unknown)}"
    return next((f"{name} is damaged" for name in sums if sha256(folder / name) != sums[name]), None)


class _Handler(ocp.PyTreeCheckpointHandler):
    """Orbax's handler of trees, with `run.json` and checksums added before the folder gets its name.

    Compression is left out, of which weights hardly get smaller, and the record of the shardings, which are given when
    a state is restored: together they take as long again as the rest.
    """

    def __init__(self):
        arrays = type_handlers.ArrayHandler(enable_write_sharding_file=False)
        registry = type_handlers.create_type_handler_registry((jax.Array, arrays))
        super().__init__(use_compression=False, type_handler_registry=registry)

    async def async_save(self, directory, args):
        self._run = args.run  # one save at a time: orbax waits for the one before
        return await super().async_save(directory, args=args)

    def finalize(self, directory):
        super().finalize(directory)
        folder = to_path(directory)
        write_text(folder / RUN, json.dumps(self._run, indent=1))
        write_sums(folder, {name: sha256(folder / name) for name in _files(folder)})


@ocp.args.register_with_handler(_Handler, for_save=True)
@dataclasses.dataclass
class _Save(ocp.args.PyTreeSave):
    run: dict = dataclasses.field(default_factory=dict)


@ocp.args.register_with_handler(_Handler, for_restore=True)
@dataclasses.dataclass
class _Restore(ocp.args.PyTreeRestore):
    pass


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {
        "/".join(jax.tree_util.keystr((key,), simple=True) for key in path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _files(folder: AnyPath) -> list[str]:
    """What a checkpoint's checksums are over."""
    return [name for name in files(folder) if name not in (SUMS, _COMMITTED)]


def _whole(workdir: AnyPath, step: int | None) -> AnyPath:
    """The folder of a checkpoint whose files are as they were written."""
    there = steps(workdir)
    if step is None and there:
        step = there[-1]
    if step not in there:
        raise ValueError(
            f"{workdir}: no checkpoint{'' if step is None else f' of step {step}'}; "
            f"there are: {', '.join(map(str, there)) or 'none'}"
        )
    folder = absolute(workdir) / "checkpoints" / str(step) / "default"
    if why := fault(folder):
        raise ValueError(f"{folder.parent} is damaged ({why}); choose another step of {', '.join(map(str, there))}")
    return folder


def _set_damaged_aside(folder: AnyPath) -> int | None:
    """Step of the newest whole checkpoint; damaged newer ones are moved to the sibling folder `damaged`."""
    damaged, there = {}, steps(folder.parent)
    for step in reversed(there):
        why = fault(folder / str(step) / "default")
        if why is None:
            break
        damaged[step] = why
    if there and len(damaged) == len(there):  # moved aside, they would be forgotten and the run begun anew
        listed = "; ".join(f"{step}: {why}" for step, why in damaged.items())
        raise ValueError(
            f"{folder}: all checkpoints are damaged ({listed}); put back one of them from a copy, "
            "or remove the folder to begin anew"
        )
    for step, why in damaged.items():
        aside = folder.parent / "damaged" / str(step)
        if not is_remote(aside):  # there, it is the first part of a move that was killed
            remove(aside)
        make_folder(aside.parent)
        move(folder / str(step), aside)
        print(f"mgie: checkpoint {step} is damaged ({why}): moved to {aside}, going on from the one before",
              file=sys.stderr)  # fmt: skip
    return max(set(there) - set(damaged), default=None)


def _newest_whole(folder: AnyPath) -> int | None:
    """`_set_damaged_aside` by process 0, which alone reads and moves; its answer is everyone's."""
    answer, error = -1, None
    if jax.process_index() == 0:
        try:
            newest = _set_damaged_aside(folder)
            answer = -1 if newest is None else newest
        except ValueError as failed:
            answer, error = -2, failed
    if jax.process_count() > 1:
        answer = int(multihost_utils.broadcast_one_to_all(np.int32(answer)))
    if answer == -2:
        raise error or ValueError(f"{folder}: all checkpoints are damaged; process 0 says how")
    return None if answer == -1 else answer
