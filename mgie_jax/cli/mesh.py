"""How a mesh is written on a command line."""

AXES = ("data", "fsdp", "tensor")  # repeated from sharding, which would bring JAX in before the arguments are checked


def mesh_sizes(text: str) -> tuple[int, ...]:
    """Sizes of (data, fsdp, tensor) of "1,-1,1" or, axes not named being 1, "fsdp=-1".

    Raises:
        ValueError: it is neither.
    """
    parts = text.split(",")
    try:
        if "=" not in text:
            sizes = tuple(int(part) for part in parts)
        else:
            named = {name.strip(): int(size) for name, size in (part.split("=") for part in parts)}
            sizes = tuple(named.pop(axis, 1) for axis in AXES) if len(named) == len(parts) else ()
            sizes = () if named else sizes
    except ValueError:
        sizes = ()
    if len(sizes) != len(AXES):
        raise ValueError(f"--mesh {text}: give sizes of {', '.join(AXES)}, such as --mesh=-1,1,4 or --mesh fsdp=-1")
    return sizes
