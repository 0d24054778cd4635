"""Read Qt resource bundles (`.rcc`), in which many photo collections are shipped.

Format: Qt's `rcc` tool, file format versions 1 to 3 (qtbase `src/tools/rcc/rcc.cpp`).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator

_COMPRESSED_ZLIB, _DIRECTORY, _COMPRESSED_ZSTD = 1, 2, 4


def read_rcc(path: str | os.PathLike) -> Iterator[tuple[str, bytes]]:
    """Yield `(name inside the bundle, content)` for every file, in the bundle's own order.

    Entries compressed with zstd are passed over, because neither Python nor numpy can read them.

    Raises:
      ValueError: the file does not start with Qt's magic bytes, or its tables point outside it.
    """
    with open(path, "rb") as handle:
        blob = handle.read()
    if blob[:4] != b"qres":
        raise ValueError(f"{path}: not a Qt resource file")
    try:
        yield from _walk(blob)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"{path}: damaged Qt resource file ({error})") from error


def _walk(blob: bytes) -> Iterator[tuple[str, bytes]]:
    version, tree, data, names = struct.unpack_from(">4I", blob, 4)
    entry_size = 22 if version >= 2 else 14  # version 2 added an 8-byte modification time

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", blob, names + offset)
        start = names + offset + 6  # 2 bytes of length, 4 of hash
        return blob[start : start + 2 * length].decode("utf-16-be")

    pending = [(0, "")]
    seen = set()
    while pending:
        index, parent = pending.pop()
        if index in seen:  # a damaged tree could otherwise loop for ever
            raise struct.error("an entry is listed twice")
        seen.add(index)
        at = tree + index * entry_size
        name_offset, flags = struct.unpack_from(">IH", blob, at)
        name = f"{parent}/{name_at(name_offset)}" if index else ""
        if flags & _DIRECTORY:
            count, first = struct.unpack_from(">II", blob, at + 6)
            pending.extend((child, name) for child in reversed(range(first, first + count)))
            continue
        if flags & _COMPRESSED_ZSTD:
            continue
        (offset,) = struct.unpack_from(">I", blob, at + 10)
        (size,) = struct.unpack_from(">I", blob, data + offset)
        start = data + offset + 4
        content = blob[start : start + size]
        # qCompress puts the uncompressed length in front of the zlib stream.
        yield name, zlib.decompress(content[4:]) if flags & _COMPRESSED_ZLIB else content
