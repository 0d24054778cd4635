"""Collecting photographs from folders, archives and Qt resource bundles."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from mgie_jax.data.photos import collect, fingerprint, is_photograph, load, split_of, stable_name
from mgie_jax.data.rcc import read_rcc


def photo(seed, size=(200, 150)):
    """Smooth random color fields with noise: statistically a photograph."""
    rng = np.random.default_rng(seed)
    base = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(base, np.float32) + rng.normal(0, 6, (size[1], size[0], 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def encoded(image, suffix="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def build_rcc(files, version=1):
    """A bundle with one folder, "pictures"; every second file compressed."""
    entries, names, data = [], b"", b""

    def add_name(name):
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        return at

    tail = b"" if version < 2 else bytes(8)
    entries.append(struct.pack(">IHII", 0, 2, 1, 1) + tail)
    entries.append(struct.pack(">IHII", add_name("pictures"), 2, len(files), 2) + tail)
    for number, (name, content) in enumerate(files.items()):
        compressed = number % 2
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if compressed else content
        entries.append(struct.pack(">IHHHI", add_name(name), compressed, 0, 0, len(data)) + tail)
        data += struct.pack(">I", len(stored)) + stored
    tree = b"".join(entries)
    head = 20
    return struct.pack(">4s4I", b"qres", version, head, head + len(tree), head + len(tree) + len(data)) + (
        tree + data + names
    )


@pytest.mark.parametrize("version", [1, 2])
def test_rcc(tmp_path, version):
    files = {"a.jpg": b"first", "b.jpg": b"second" * 50, "ü.txt": b""}
    (tmp_path / "x.rcc").write_bytes(build_rcc(files, version))
    assert dict(read_rcc(tmp_path / "x.rcc")) == {f"/pictures/{name}": data for name, data in files.items()}


def test_rcc_rejects_other_and_damaged_files(tmp_path):
    (tmp_path / "no.rcc").write_bytes(b"PK something else")
    with pytest.raises(ValueError, match="not a Qt resource"):
        list(read_rcc(tmp_path / "no.rcc"))
    (tmp_path / "cut.rcc").write_bytes(build_rcc({"a.jpg": b"first"})[:40])
    with pytest.raises(ValueError, match="damaged"):
        list(read_rcc(tmp_path / "cut.rcc"))


def test_collect(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    photo(0).save(source / "kept.png")
    photo(0).resize((400, 300)).save(source / "same-larger.jpg")
    photo(1, (100, 90)).save(source / "tiny.png")
    photo(2, (900, 150)).save(source / "panorama.png")
    Image.new("RGB", (200, 200), "red").save(source / "flat.png")
    holes = photo(3).convert("RGBA")
    holes.putalpha(Image.linear_gradient("L").resize(holes.size))
    holes.save(source / "cutout.png")
    (source / "broken.jpg").write_bytes(b"\xff\xd8 not really")
    (source / "notes.txt").write_text("not a picture")
    bundle = tmp_path / "bundle.rcc"
    bundle.write_bytes(build_rcc({"in-rcc.webp": encoded(photo(4), "WEBP", quality=95), "skip.jpg": encoded(photo(5))}))
    with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as archive:
        archive.writestr("data/in-zip.jpg", encoded(photo(6), quality=95))
    sources = [source, bundle, tmp_path / "wheel.whl"]

    index = collect(tmp_path / "out", sources, 96, exclude=["*skip*"], heldout=["*wheel*"], progress=False)
    origins = [entry["origin"] for entry in index]
    assert origins == [
        "source/kept.png",
        "source/panorama.png",
        f"{tmp_path.name}/bundle.rcc!pictures/in-rcc.webp",
        f"{tmp_path.name}/wheel.whl!data/in-zip.jpg",
    ]
    assert [entry["size"] for entry in index] == [[128, 96], [192, 96], [128, 96], [128, 96]]
    assert index[-1]["split"] == "heldout"
    assert json.loads((tmp_path / "out" / "index.json").read_text()) == index
    assert collect(tmp_path / "again", sources, 96, ["*skip*"], ["*wheel*"], progress=False) == index

    photos = load(tmp_path / "out")
    assert list(photos) == [entry["name"] for entry in index]
    assert photos[index[0]["name"]].shape == (96, 128, 3)
    assert set(load(tmp_path / "out", "train")) | set(load(tmp_path / "out", "heldout")) == set(photos)
    with pytest.raises(ValueError, match="split"):
        load(tmp_path / "out", "test")


def test_collect_refuses_a_missing_source(tmp_path):
    with pytest.raises(FileNotFoundError):
        collect(tmp_path / "out", [tmp_path / "absent"], progress=False)


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    (tmp_path / "side.jpg").write_bytes(encoded(photo(0, (240, 160)), exif=exif, quality=95))
    assert collect(tmp_path / "out", [tmp_path / "side.jpg"], 128, progress=False)[0]["size"] == [128, 192]


def test_photographs_and_drawings():
    assert is_photograph(photo(0))
    drawing = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 256, (8, 8, 3)), 25, 0), 25, 1)
    assert not is_photograph(Image.fromarray(drawing.astype(np.uint8)))


def test_fingerprint():
    a, b = fingerprint(photo(0)), fingerprint(photo(0).resize((300, 225)))
    assert a @ b > 0.99 and a @ fingerprint(photo(1)) < 0.8


def test_names_and_splits_are_stable():
    assert stable_name("a/Some Photo (1).JPG") == stable_name("a/Some Photo (1).JPG")
    assert stable_name("a/x.jpg") != stable_name("b/x.jpg")
    names = [stable_name(f"folder/{i}.jpg") for i in range(2000)]
    assert 0.07 < np.mean([split_of(name) == "heldout" for name in names]) < 0.13
    assert split_of("astronaut-1.jpg") == split_of("astronaut-1.jpg")
