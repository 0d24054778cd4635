"""One width for what people write, whatever the model."""

import pytest

from mgie_jax.models import presets
from mgie_jax.text.prompt import PromptConfig, PromptTokenizer
from mgie_jax.text.widths import MULTIPLE, ROOM, example_widths, planned_width, prompt_widths, widths
from mgie_jax.weights.files import open_tokenizer

LONG = "make it look as if it had been taken on a cold winter evening, with snow on the roofs of all the houses, " * 2


@pytest.mark.parametrize(
    "own, room, longest, expected",
    [(95, 64, 256, (192, 256)), (64, 64, 512, (128, 512)), (65, 64, 512, (192, 512)), (95, 97, 192, (192,)),
     (300, 64, 256, (256,))],
)  # fmt: skip
def test_widths(own, room, longest, expected):
    assert widths(own, room, longest) == expected


@pytest.fixture(scope="module")
def bundled():
    from mgie_jax.loading import default_model_dir

    sizes = presets.default()
    return PromptTokenizer(
        open_tokenizer(default_model_dir() / "tokenizer"), sizes.mllm.vision.num_patches, sizes.prompt
    )


def test_every_instruction_that_people_write_has_the_first_width(bundled):
    first, longest = prompt_widths(bundled)
    assert first % MULTIPLE == 0 and longest == bundled.config.model_max_length
    for instruction in ("dark", "make it look like night", LONG):
        assert len(bundled.encode_prompt(instruction)) <= first
    assert first < len(bundled.encode_prompt(LONG + LONG)) <= longest


def test_supplied_answers_have_room_too(bundled):
    answer = presets.default().sampling.max_new_tokens
    own = len(bundled.encode_example("a", "a")[0]) - 2
    assert example_widths(bundled, answer) == widths(own, ROOM + answer, bundled.config.model_max_length)


def test_what_is_planned_is_what_runs(bundled):
    sizes = presets.default()
    assert planned_width(sizes.prompt, sizes.mllm.vision.num_patches) == prompt_widths(bundled)[0]
    assert planned_width(presets.mgie_7b().prompt, 256) == 384
    assert planned_width(PromptConfig(model_max_length=300), 256) == 300
