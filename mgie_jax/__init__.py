"""MGIE in JAX: edit a photo by an instruction that a multimodal language model first spells out.

    import mgie_jax
    editor = mgie_jax.load()
    editor.edit("photo.jpg", "make it look like night").image.save("edited.png")

`load` and `default_model_dir` are fetched on first use, so that `import mgie_jax` alone is quick.
"""

__version__ = "0.1.0"
__all__ = ["default_model_dir", "load"]


def __getattr__(name: str):
    if name in __all__:
        from mgie_jax import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
