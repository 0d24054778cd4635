"""The Python API: a loaded model that edits photos.

editor = mgie_jax.load()  # module `loading`
result = editor.edit("photo.jpg", "make it warmer")
result.image.save("warmer.png")
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax.sharding import Mesh
from jaxtyping import Array, Float
from PIL import Image

from mgie_jax import edit as stages
from mgie_jax import first
from mgie_jax.compilation import program_store
from mgie_jax.diffusion.sample import SAMPLERS, Sampler, State, scales
from mgie_jax.distributed import to_host
from mgie_jax.executables import described
from mgie_jax.models.common import unscan_layers
from mgie_jax.models.mgie import MGIE
from mgie_jax.models.presets import MGIEConfig
from mgie_jax.photo import CLIP_MEAN, CLIP_STD, clip_pixels, fit, open_photo, to_pixels
from mgie_jax.programs import Programs, chunks
from mgie_jax.text.prompt import PromptTokenizer, pad_batch
from mgie_jax.text.widths import example_widths, prompt_widths

Photo = str | os.PathLike | Image.Image
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class EditResult:
    """One edited photo.

    Attributes:
        image: the edited photo, of the model's resolution.
        before: the photo as the model was shown it: upright, resized and perhaps cropped.
        expressive: the expressive instruction, written or supplied.
        seed: what `edit` was given.
        seconds: wall time of each stage of the call.
        note: what was cropped from the photo, in words, or None.
        states: the MLLM's eight visual states (8, d); give them to `edit` to draw again without the MLLM.
    """

    image: Image.Image
    before: Image.Image
    expressive: str
    seed: int
    seconds: dict[str, float]
    note: str | None
    states: Float[np.ndarray, "8 d"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A photo and its instruction as the networks take them; `Editor.prepare` makes it, on the host alone.

    Attributes:
        before, note: as an `EditResult` has them.
        expressive: the expressive instruction that was supplied; None where it is to be written.
        ids: the prompt's tokens, and those of a supplied answer.
    """

    before: Image.Image
    note: str | None
    seed: int
    expressive: str | None
    ids: list[int]
    clip_pixels: Float[np.ndarray, "s s 3"]
    pixels: Float[np.ndarray, "h w 3"]


class Editor:
    """A model in memory; `edit` and `edit_many` may be called any number of times.

    Attributes:
        config: the model's sizes and the defaults of an edit.
        model: its modules.
        params: theirs. On a CPU, without a mesh, the layers of the MLLM are apart (`models.common.unscan_layers`).
        programs: what an edit runs.

    Args:
        params: {"mllm", "edit_head", "unet", "vae", "emb"}, as `weights.files.load_model_dir` gives.
        tokenizer: of the model's vocabulary.
        mesh: that the parameters lie on; None where they lie on one device.
        dtype: what the networks compute in.
        quantize: of `loading.load`; the parameters are quantized already (`models.quantize`).
        begun: of `Programs`.
    """

    def __init__(
        self, config: MGIEConfig, params: dict, tokenizer: PromptTokenizer, *, mesh: Mesh | None = None,
        dtype: Dtype = jnp.float32, quantize: str | None = None, begun: Programs | None = None,
    ):  # fmt: skip
        mllm = jax.tree.map(lambda leaf: leaf, params["mllm"])  # the caller's dicts stay as they are
        mllm = mllm if mesh else laid_out(mllm)
        self.config, self.params, self.tokenizer = config, params | {"mllm": mllm}, tokenizer
        self.model = MGIE(config, dtype, scan_layers="layers" in mllm["model"], quantize=quantize)
        self._special = stages.Special(tokenizer.img_ids[0], tokenizer.eos_id, tokenizer.pad_id)
        self.programs = Programs(
            self.model, self.params, self._special, mesh=mesh, store=program_store(mesh), begun=begun
        )

    def known(self) -> first.Known:
        """What another process may know of this one's programs before it has read the model."""
        shapes = jax.tree.map(described, self.params)
        return first.Known(self.model, shapes, self._special, self.widths(supplied=False)[0])

    def edit(
        self,
        photo: Photo,
        instruction: str,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        seed: int = 0,
        expressive: str | None = None,
        states: Float[np.ndarray, "8 d"] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> EditResult:
        """One photo edited by an instruction in plain words.

        Args:
            photo: a path or a Pillow image.
            instruction: such as "make it warmer".
            steps, sampler, guidance_scale, image_guidance_scale: the model's own where None.
            seed: the same seed gives the same picture, alone or in a batch.
            expressive: use this expressive instruction rather than have it written.
            states: visual states kept from an earlier result; the MLLM then does not run.
            progress: called with (steps done, steps in all) about four times while denoising.

        Raises:
            PhotoError: the photo cannot be read.
            ValueError: an empty or overlong instruction, an unknown sampler, a number of steps out of range.
        """
        return self.edit_many(
            [photo], [instruction], steps=steps, sampler=sampler, guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale, seeds=[seed],
            expressive=None if expressive is None else [expressive],
            states=None if states is None else np.asarray(states)[None], progress=progress,
        )[0]  # fmt: skip

    def edit_many(
        self,
        photos: Sequence[Photo],
        instructions: Sequence[str],
        *,
        steps: int | None = None,
        sampler: str | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        seeds: Sequence[int] | None = None,
        expressive: Sequence[str] | None = None,
        states: Float[np.ndarray, "n 8 d"] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[EditResult]:
        """As `edit`, for photos that have one size once fitted to the model (those of one aspect ratio have).

        The batch is padded to a power of two, so that few sizes compile.

        Raises:
            ValueError: also where lengths differ, or the photos do not fit one size.
        """
        clock = _Clock()
        seeds = [0] * len(photos) if seeds is None else seeds
        texts = [None] * len(photos) if expressive is None else expressive
        if not len(photos) == len(instructions) == len(seeds) == len(texts):
            raise ValueError(
                f"{len(photos)} photos, {len(instructions)} instructions, {len(seeds)} seeds, "
                f"{len(texts)} expressive instructions"
            )
        self.sampler(sampler, steps)  # what is wrong with it is said before photos are read
        rows = [
            self.prepare(photo, instruction, seed=int(seed), expressive=text)
            for photo, instruction, seed, text in zip(photos, instructions, seeds, texts, strict=True)
        ]
        return self.edit_prepared(
            rows, steps=steps, sampler=sampler, guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale, states=states, progress=progress, clock=clock,
        )  # fmt: skip

    def prepare(self, photo: Photo, instruction: str, *, seed: int = 0, expressive: str | None = None) -> Prepared:
        """What the host does for one photo of a batch; threads may do it while the devices are at work.

        Raises:
            PhotoError: the photo cannot be read.
            ValueError: an empty or overlong text.
        """
        ids = self._ids(instruction, expressive)
        opened = photo if isinstance(photo, Image.Image) else open_photo(photo)
        fitted, note = fit(opened.convert("RGB"), self.config.sampling.resolution, self.config.photo_multiple)
        seen = clip_pixels(fitted, self.config.mllm.vision.image_size, CLIP_MEAN, CLIP_STD)
        return Prepared(fitted, note, seed, expressive, ids, seen, to_pixels(fitted))

    def width(self, instruction: str, expressive: str | None = None) -> int:
        """To how many tokens its prompt is padded where it is alone; photos of like width go well together."""
        length = len(self._ids(instruction, expressive))
        return next(size for size in self.widths(expressive is not None) if size >= length)

    def widths(self, supplied: bool) -> tuple[int, ...]:
        """What prompts are padded to, ascending; where it is `supplied`, with an expressive instruction."""
        if supplied:
            return example_widths(self.tokenizer, self.config.sampling.max_new_tokens)
        return prompt_widths(self.tokenizer)

    def edit_prepared(
        self,
        rows: Sequence[Prepared],
        *,
        steps: int | None = None,
        sampler: str | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        states: Float[np.ndarray, "n 8 d"] | None = None,
        progress: Callable[[int, int], None] | None = None,
        padded_to: int | None = None,
        clock: "_Clock | None" = None,
    ) -> list[EditResult]:
        """One batch of photos that `prepare` has made ready.

        Args:
            padded_to: rows of the batch that is computed, at least as many as are given; a power of two where None.
            clock: has run since the caller began.

        Raises:
            ValueError: the photos are not of one size; some have an expressive instruction and some have none; or as
                `edit`.
        """
        clock, plan = clock or _Clock(), self.sampler(sampler, steps)
        if not rows or len({row.expressive is None for row in rows}) > 1:
            raise ValueError("a batch is of one photo or more, and an expressive instruction is given for all or none")
        batch = self.batch(rows, guidance_scale, image_guidance_scale, padded_to)
        seeds = np.asarray([row.seed for row in rows], np.uint32)
        batch, seeds = self.programs.placed((batch, _padded(seeds, len(batch.ids))))
        self.programs.look_ahead(plan, batch)
        clock.lap("read")

        with self.programs.on_mesh():
            texts, states = self._states(batch, rows, states)
            clock.lap("write")
            conditions = self.programs.guide(states, batch.pixels)
            keys, state = jax.block_until_ready(self.programs.start(plan, conditions, seeds))
            clock.lap("guide")
            state = jax.block_until_ready(self._denoised(conditions, batch, plan, state, keys, progress))
            clock.lap("denoise")
            pictures = to_host(self.programs.decode(state.x))
            clock.lap("decode")
        states = to_host(states)
        return [
            EditResult(Image.fromarray(pictures[i]), row.before, texts[i], row.seed, clock.laps, row.note, states[i])
            for i, row in enumerate(rows)
        ]

    def sampler(self, name: str | None, steps: int | None) -> Sampler:
        """A sampler, the model's own where None. Raises ValueError: unknown, or a number of steps out of range."""
        name = self.config.sampling.sampler if name is None else name
        if name not in SAMPLERS:
            raise ValueError(f"there is no sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
        return SAMPLERS[name](self.config.schedule, self.config.sampling.steps if steps is None else steps)

    def _ids(self, instruction: str, expressive: str | None) -> list[int]:
        if expressive is None:
            return self.tokenizer.encode_prompt(instruction)
        return self.tokenizer.encode_example(instruction, expressive)[0]

    def batch(
        self, rows: Sequence[Prepared], guidance_scale: float | None = None, image_guidance_scale: float | None = None,
        padded_to: int | None = None,
    ) -> stages.EditBatch:  # fmt: skip
        """What the programs take, on the host; see `edit_prepared`."""
        sizes = {row.before.size for row in rows}
        if len(sizes) > 1:
            raise ValueError(f"photos of one batch must fit one size, these fit {sorted(sizes)}; edit them apart")
        count = next((size for size in (padded_to or 0, *BATCH_BUCKETS) if size >= len(rows)), len(rows))
        widths = self.widths(rows[0].expressive is not None)
        ids, mask = pad_batch([row.ids for row in rows], widths, pad_id=self.tokenizer.pad_id)
        usual = self.config.sampling
        text = usual.guidance_scale if guidance_scale is None else guidance_scale
        image = usual.image_guidance_scale if image_guidance_scale is None else image_guidance_scale
        return stages.EditBatch(
            ids=_padded(ids, count),
            mask=_padded(mask, count),
            clip_pixels=_padded(np.stack([row.clip_pixels for row in rows]), count),
            pixels=_padded(np.stack([row.pixels for row in rows]), count),
            scales=scales(count, text, image),
        )

    def _states(
        self, batch: stages.EditBatch, rows: Sequence[Prepared], states: np.ndarray | None
    ) -> tuple[list[str], Array]:
        """What is shown to people, and the visual states: kept, read from given answers, or written."""
        given = [row.expressive or "" for row in rows]
        if states is not None:
            return given, self.programs.placed(_padded(states, len(batch.ids)))
        if rows[0].expressive is not None:
            return given, jax.block_until_ready(self.programs.read(batch))
        answer, states = self.programs.write(batch)
        lengths, tokens = to_host(answer.length), to_host(answer.tokens)
        answers = [tokens[i, : lengths[i]] for i in range(len(rows))]
        return [self.tokenizer.decode_answer(ids) for ids in answers], states

    def _denoised(
        self, conditions: stages.Conditions, batch: stages.EditBatch, plan: Sampler, state: State, keys: Array,
        progress: Callable[[int, int], None] | None,
    ) -> State:  # fmt: skip
        steps = len(plan.table.timestep)
        for begin, end in chunks(steps):
            rows = plan.table.rows(begin, end)
            state = self.programs.denoise(plan, conditions, batch.scales, rows, state, keys)
            if progress:
                jax.block_until_ready(state)
                progress(end, steps)
        return state


def laid_out(mllm: dict) -> dict:
    """The MLLM's parameters as their device computes with them best: a CPU wants layers apart. `mllm` is used up."""
    leaf = jax.tree.leaves(mllm)[0]
    platform = next(iter(leaf.devices())).platform if isinstance(leaf, jax.Array) else jax.default_backend()
    return unscan_layers(mllm) if platform == "cpu" and "layers" in mllm["model"] else mllm


class _Clock:
    """Wall time since the last lap, by name."""

    def __init__(self):
        self.laps, self._since = {}, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._since = now - self._since, now


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    """`rows` with the last one repeated until there are `count`."""
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])
