"""Gather a folder of training photographs from whatever holds photographs.

`collect` walks folders, archives and Qt resource bundles, keeps what is a photograph, and writes it small,
upright and with an index; `load` reads such a folder back as arrays.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from mgie_jax.data.rcc import read_rcc
from mgie_jax.paths import is_remote, local, make_folder, to_path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
INDEX_NAME = "index.json"
MIN_SIDE = 128
MAX_ASPECT = 2.0
IN_FLIGHT = 32  # photos fetched from a bucket at a time
HELDOUT_PERCENT = 10
_NEAR_DUPLICATE = 0.94  # correlation of two thumbnails


def collect(
    out_dir: str | os.PathLike,
    sources: Sequence[str | os.PathLike],
    size: int = 192,
    exclude: Sequence[str] = (),
    heldout: Sequence[str] = (),
    progress: bool = True,
) -> list[dict]:
    """Write every distinct photograph found in `sources` into `out_dir`, with `index.json`.

    Args:
      out_dir: made if absent. Files of the same name are overwritten.
      sources: folders (walked), image files, `.rcc` bundles, `.zip`/`.whl` archives; order decides which of
        two near-duplicates stays.
      size: length of the short side of the written photos, pixels. Smaller photos are enlarged.
      exclude: shell patterns; a photo whose origin matches one is left out.
      heldout: shell patterns; a photo whose origin matches one is held out whatever its hash.
      progress: show a progress bar.

    Returns:
      The index: one `{"name", "origin", "size": [width, height], "split": "train" | "heldout"}` per photo.

    Raises:
      FileNotFoundError: a source does not exist.
      PathError: a source is in a bucket.
    """
    out_dir = to_path(out_dir)
    make_folder(out_dir)
    sources = [local(source, "sources of photos are read from disk") for source in sources]
    index: list[dict] = []
    seen = np.zeros((0, 256), np.float32)
    for origin, content in tqdm(_images(sources), desc="photos", unit="file", disable=not progress):
        if any(fnmatch.fnmatch(origin, pattern) for pattern in exclude):
            continue
        image = _decode(content)
        if image is None or not is_photograph(image):
            continue
        mark = fingerprint(image)
        if (seen @ mark > _NEAR_DUPLICATE).any():
            continue
        seen = np.concatenate([seen, mark[None]])
        image = _fit(image, size)
        name = stable_name(origin)
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=95)
        (out_dir / name).write_bytes(encoded.getvalue())
        forced = any(fnmatch.fnmatch(origin, pattern) for pattern in heldout)
        split = "heldout" if forced else split_of(name)
        index.append({"name": name, "origin": origin, "size": list(image.size), "split": split})
    (out_dir / INDEX_NAME).write_text(json.dumps(index, indent=1) + "\n")
    return index


def load(folder: str | os.PathLike, split: str | None = None) -> dict[str, np.ndarray]:
    """Read a collected folder: name -> uint8 (h, w, 3), for the split "train" or "heldout", or both (None).

    Raises:
      FileNotFoundError: the folder holds no `index.json`.
      ValueError: `split` is none of the three.
    """
    if split not in (None, "train", "heldout"):
        raise ValueError(f"split must be 'train', 'heldout' or None, not {split!r}")
    folder = to_path(folder)
    index = json.loads((folder / INDEX_NAME).read_text())
    names = [entry["name"] for entry in index if split in (None, entry["split"])]

    def pixels(name: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO((folder / name).read_bytes())).convert("RGB"))

    if not is_remote(folder):
        return {name: pixels(name) for name in names}
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return dict(zip(names, pool.map(pixels, names), strict=True))


def split_of(name: str) -> str:
    """ "heldout" for a tenth of all names, else "train"; the same for a name on every machine."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100
    return "heldout" if bucket < HELDOUT_PERCENT else "train"


def stable_name(origin: str) -> str:
    """A readable, unique file name for a photo: its own stem and a hash of where it came from."""
    stem = re.sub(r"[^a-z0-9]+", "-", PurePath(origin).stem.lower()).strip("-")[:40]
    return f"{stem}-{hashlib.sha256(origin.encode()).hexdigest()[:8]}.jpg"


def fingerprint(image: Image.Image) -> np.ndarray:
    """A unit vector of 256 float32; the dot product of two is near 1 where one picture copies the other.

    A plain average hash (64 thresholded bits) misses copies of pictures with a large even background, whose
    bits are decided by noise; the correlation of the same thumbnails does not.
    """
    small = np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX), np.float32).ravel()
    small = small - small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def is_photograph(image: Image.Image) -> bool:
    """Whether an RGB picture looks photographed: big enough, without a drawing's flat areas and few colors.

    Photographs carry noise and shading, so neighbouring pixels are seldom equal and colors are many;
    drawings, icons, maps and diagrams repeat a handful of colors over large areas.
    """
    if min(image.size) < MIN_SIDE:
        return False
    pixels = np.asarray(_fit(image, MIN_SIDE, enlarge=False, resample=Image.Resampling.NEAREST), np.int32)
    flat = np.abs(np.diff(pixels, axis=1)).sum(axis=-1) == 0
    coarse = (pixels // 8) @ np.array([1, 32, 1024])
    counts = np.sort(np.unique(coarse, return_counts=True)[1])[::-1]
    return bool(flat.mean() < 0.62 and counts.size > 230 and counts[:4].sum() < 0.68 * coarse.size)


def _fit(
    image: Image.Image, size: int, enlarge: bool = True, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Crop centrally to an aspect of at most 2:1, then bring the short side to `size`."""
    width, height = image.size
    short = min(width, height)
    limit = int(short * MAX_ASPECT)
    crop_width, crop_height = min(width, limit), min(height, limit)
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    image = image.crop((left, top, left + crop_width, top + crop_height))
    if short < size and not enlarge:
        return image
    scale = size / short
    return image.resize((max(size, round(crop_width * scale)), max(size, round(crop_height * scale))), resample)


def _decode(content: bytes) -> Image.Image | None:
    """The upright RGB picture, or None for what is broken, tiny or cut out with transparency."""
    try:
        image = Image.open(io.BytesIO(content))
        if min(image.size) < MIN_SIDE:
            return None
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            alpha = np.asarray(image.convert("RGBA").getchannel("A"))
            if (alpha < 255).mean() > 0.001:
                return None
        return image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return None


def _images(sources: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    """Every file with an image suffix, as (origin, content); a member's origin is `archive!member`."""
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(source)
        files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
        root = source if source.is_dir() else source.parent
        for path in files:
            origin = f"{root.name}/{path.relative_to(root).as_posix()}"
            suffix = path.suffix.lower()
            if suffix == ".rcc":
                members = read_rcc(path)
            elif suffix in (".zip", ".whl"):
                members = _zip_members(path)
            elif suffix in IMAGE_SUFFIXES:
                yield origin, path.read_bytes()
                continue
            else:
                continue
            for member, content in members:
                if member.lower().endswith(IMAGE_SUFFIXES):
                    yield f"{origin}!{member.lstrip('/')}", content


def _zip_members(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in sorted(archive.namelist()):
            if member.lower().endswith(IMAGE_SUFFIXES):
                yield member, archive.read(member)
