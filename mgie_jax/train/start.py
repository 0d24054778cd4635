"""What a stage begins with: a model directory, its weights each straight where they belong, and its tokenizer."""

import dataclasses
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh
from jax.tree_util import keystr, tree_map_with_path
from jaxtyping import PyTree

from mgie_jax.data.order import EndlessExamples, GeneratedExamples, Unusable
from mgie_jax.distributed import wait_for_all
from mgie_jax.models.mgie import MGIE
from mgie_jax.models.presets import PRESETS, MGIEConfig
from mgie_jax.paths import AnyPath, to_path
from mgie_jax.sharding import init_sharded, param_sharding
from mgie_jax.text.prompt import PromptTokenizer
from mgie_jax.text.train_tokenizer import save_tokenizer, train_bpe
from mgie_jax.train.gather import hand_over
from mgie_jax.weights.atomic import is_there
from mgie_jax.weights.files import INDEX, load_model_dir, load_tokenizer, save_model_dir
from mgie_jax.weights.model_config import load_config
from mgie_jax.weights.rules import LazyLeaf, sharded

TOKENIZER_EXAMPLES = 20_000


@dataclasses.dataclass(frozen=True)
class Start:
    """A model directory's content, as far as a stage reads it; `params` are whole top-level trees."""

    config: MGIEConfig
    params: dict
    tokenizer: PromptTokenizer


def init_dir(config: ml_collections.ConfigDict, workdir: AnyPath) -> AnyPath:
    """The model directory a run began with: `config.init`, or the fresh one it made in its work folder."""
    return to_path(config.init) if config.init else to_path(workdir) / "init"


def model_config(config: ml_collections.ConfigDict) -> MGIEConfig:
    """The sizes of the model a run trains.

    Raises:
        ValueError: no such preset, or `config.init` is no model directory.
    """
    if config.init:
        return load_config(config.init)
    if config.model not in PRESETS:
        raise ValueError(f"config.model is {config.model!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[config.model]()


def load_start(path: AnyPath, parts: Collection[str], trainable: Sequence[str], mesh: Mesh, frozen_dtype: str) -> Start:
    """Reads the top-level trees `parts` of a model directory onto the mesh: each device its own shards and no more.

    Args:
        trainable: regular expressions as of `state.split_params`; what they match is float32, the rest `frozen_dtype`.

    Raises:
        ValueError: as `load_model_dir` and `load_tokenizer` do.
    """
    put = sharded(partial(param_sharding, mesh))

    def place(name: tuple[str, ...], leaf: LazyLeaf) -> jax.Array | None:
        if name[0] not in parts:
            return None  # `emb` among others: while training, the embedding's own rows serve
        return put(name, dataclasses.replace(leaf, dtype=param_dtype("/".join(name), trainable, frozen_dtype)))

    model, params = load_model_dir(path, place=place)
    return Start(model, {name: params[name] for name in parts}, load_tokenizer(path, model))


def write_fresh(
    path: AnyPath, model: MGIEConfig, config: ml_collections.ConfigDict, trainable: Sequence[str], mesh: Mesh,
    texts: Callable[[], Iterable[str]],
) -> None:  # fmt: skip
    """Writes a model directory of random weights drawn from `config.seed`, and a tokenizer learned from the texts.

    A run keeps it, and goes on from it when resumed: on another kind of device the same seed need not give the same
    bits. Weights are made on the mesh, in the dtypes they are trained in, and written by process 0 tensor by tensor.

    Raises:
        ValueError: there is a model of other sizes.
    """
    if is_there(path, INDEX):
        if load_config(path) != model:
            raise ValueError(f"{path} is not of config.model {config.model!r}; begin in another workdir")
        return

    def init(key: jax.Array) -> dict:
        def cast(name: tuple, leaf: jax.Array) -> jax.Array:
            return leaf.astype(param_dtype(keystr(name, simple=True, separator="/"), trainable, config.frozen_dtype))

        return tree_map_with_path(cast, MGIE(model).init(key))

    def write(params: PyTree) -> None:
        with tempfile.TemporaryDirectory() as folder:
            vocabulary, length = model.mllm.llm.vocab_size, model.prompt.model_max_length
            save_tokenizer(train_bpe(texts(), vocabulary, length), folder)
            save_model_dir(path, model, params, folder, dtype=None)

    hand_over(init_sharded(init, mesh, jax.random.key(config.seed)), write)
    wait_for_all("fresh model")


def tokenizer_texts(examples: EndlessExamples, model: MGIEConfig) -> list[str]:
    """What a fresh model's tokenizer is learned from: the words of the examples, and the prompt around them."""
    prompt = [f"{model.prompt.system} USER: {model.prompt.question}", " ASSISTANT:"]
    # The prompt occurs often enough for its words to become whole tokens.
    return [text for pair in _words(examples) for text in pair] + 3000 * prompt


def _words(examples: EndlessExamples) -> Iterable[tuple[str, str]]:
    if isinstance(examples, GeneratedExamples):  # small ones have the same words
        examples = GeneratedExamples(dataclasses.replace(examples.pairs, size=32, seed=1))
    for place in range(TOKENIZER_EXAMPLES):
        try:
            found = examples.find(place)
        except Unusable:
            continue
        yield found.instruction, found.expressive


def param_dtype(name: str, trainable: Sequence[str], frozen_dtype: str) -> jnp.dtype:
    """Of a parameter called "a/b/c" while it trains, or does not."""
    return jnp.dtype("float32" if any(re.match(pattern, name) for pattern in trainable) else frozen_dtype)
