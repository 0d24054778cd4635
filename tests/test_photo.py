"""Photos: whatever opens, opens right; whatever does not, says so in one line."""

import json
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from mgie_jax import photo
from mgie_jax.compare import compare_picture
from mgie_jax.photo import PhotoError, check_writable, clip_pixels, fit, fit_size, open_photo, save_atomic, upright_size

PHOTOS = Path(photo.__file__).parent / "assets" / "photos"
RED, GREEN = (255, 0, 0), (0, 128, 0)


def _saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return open_photo(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff", "a.bmp", "a.gif", "a.ppm"])
def test_formats_open_as_rgb(tmp_path, name):
    opened = _saved(tmp_path, Image.new("RGB", (40, 30), RED), name)
    assert (opened.mode, opened.size) == ("RGB", (40, 30))
    assert np.abs(np.asarray(opened, int) - RED).max() < 8


def test_bundled_photos_open_and_are_credited():
    names = [path.name for path in PHOTOS.glob("*.jpg")]
    assert len(names) >= 2
    for name in names:
        assert max(open_photo(PHOTOS / name).size) <= 512
        assert (PHOTOS / name).stat().st_size < 150_000
        assert f"`{name}`" in (PHOTOS / "CREDITS.md").read_text()


def test_exif_rotation_is_applied_once(tmp_path):
    image = Image.new("RGB", (40, 20), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    opened = _saved(tmp_path, image, "turned.jpg", exif=exif)
    assert opened.size == (20, 40)
    save_atomic(opened, tmp_path / "again.jpg")
    assert open_photo(tmp_path / "again.jpg").size == (20, 40)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
def test_modes_open_as_rgb_with_their_brightness(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 32768, np.uint16))
    elif mode == "I":
        image = Image.fromarray(np.array([[0, 32768], [32768, 65535]], np.int32))
    elif mode == "F":
        image = Image.fromarray(np.full((8, 8), 0.5, np.float32))
    elif mode == "LAB":
        image = Image.new("LAB", (8, 8), (128, 128, 128))
    else:
        image = Image.new("L", (8, 8), 128).convert("RGB").convert(mode)
    opened = _saved(tmp_path, image, "photo.tiff" if mode in ("CMYK", "YCbCr", "LAB", "F", "I") else "photo.png")
    assert opened.mode == "RGB"
    if mode not in ("1", "LAB"):
        assert abs(np.asarray(opened, float).mean() - 128) < 4


def test_16_bit_gradient_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    opened = np.asarray(_saved(tmp_path, Image.fromarray(ramp), "ramp.png"), int)
    assert np.abs(opened[0, :, 0] - np.arange(256)).max() <= 1


def test_transparency_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (*GREEN, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert list(_saved(tmp_path, image, "a.png").get_flattened_data()) == [GREEN, (255, 255, 255)]
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([*RED])
    assert _saved(tmp_path, palette, "p.png", transparency=0).getpixel((0, 0)) == (255, 255, 255)


def test_colour_profile_is_converted_and_not_kept(tmp_path):
    grey = Image.new("RGB", (4, 4), (128, 128, 128))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    opened = _saved(tmp_path, grey, "srgb.png", icc_profile=srgb)
    assert np.abs(np.asarray(opened, int) - 128).max() <= 1
    assert opened.info == {}
    assert _saved(tmp_path, grey, "broken.png", icc_profile=b"nonsense").getpixel((0, 0)) == (128, 128, 128)


def test_animation_opens_at_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    opened = _saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert opened.getpixel((0, 0)) == RED


def assert_refused(path, *words):
    with pytest.raises(PhotoError) as caught:
        open_photo(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    assert all(word in message for word in words), message


def test_what_is_not_a_photo_is_refused_by_name(tmp_path):
    assert_refused(tmp_path / "missing.jpg", "no such file")
    assert_refused(tmp_path, "folder")
    (tmp_path / "empty.jpg").touch()
    assert_refused(tmp_path / "empty.jpg", "empty")
    (tmp_path / "text.jpg").write_text("this is not a picture")
    assert_refused(tmp_path / "text.jpg", "not a picture")
    assert_refused(Path("/dev/null"), "regular file")
    assert_refused(tmp_path / ("n" * 300), "cannot be read")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.tiff"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_truncated_photo_is_refused(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert_refused(path)


def test_a_decompression_bomb_is_refused_unread(tmp_path):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(png)
    assert_refused(tmp_path / "bomb.png", "megapixels")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_photo_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    assert_refused(tmp_path / "a.png", "permissions")


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (300, 200), (200, 301), (640, 640), (4000, 1000)])
@pytest.mark.parametrize("resolution, multiple", [(128, 32), (128, 16), (512, 64)])
def test_fit_gives_sides_the_networks_take(size, resolution, multiple):
    fitted, note = fit(Image.new("RGB", size), resolution, multiple)
    width, height = fitted.size
    assert width % multiple == height % multiple == 0
    assert 0.7 < width * height / resolution**2 < 1.5
    aspect = np.clip(size[0] / size[1], 0.5, 2)
    assert abs(np.log(width / height / aspect)) < 0.15
    assert (note is None) == (abs(np.log(width / height / (size[0] / size[1]))) < 0.0202)


def test_fit_crops_the_middle_and_says_what():
    pixels = np.zeros((100, 400, 3), np.uint8)
    pixels[:, 100:300] = 255
    fitted, note = fit(Image.fromarray(pixels), 128, 32)
    assert fitted.size == (192, 96)
    assert np.asarray(fitted)[:, 2:-2].min() > 200
    assert "50%" in note and "width" in note and "left and right" in note


def test_fit_refuses_impossible_sizes():
    with pytest.raises(ValueError, match="resolution 16"):
        fit(Image.new("RGB", (4, 4)), 16, 32)


def test_pixels_span_minus_one_to_one():
    pixels = photo.to_pixels(Image.fromarray(np.array([[[0, 51, 255]]], np.uint8)))
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, [[[-1, -0.6, 1]]], atol=1e-6)


@pytest.mark.parametrize("size", [(300, 200), (201, 333), (224, 224), (100, 90)])
def test_clip_pixels_equal_the_reference(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    reference = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    expected = reference(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    found = clip_pixels(image, 224, photo.CLIP_MEAN, photo.CLIP_STD)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5


def test_save_is_whole_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"before")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(PhotoError, match="No space left"):
            save_atomic(Image.new("RGB", (4, 4)), path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.png"]
    save_atomic(Image.new("RGB", (4, 4), RED), path)
    assert open_photo(path).getpixel((0, 0)) == RED
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.skipif(os.name == "nt", reason="permission bits")
def test_a_saved_picture_has_ordinary_permissions(tmp_path):
    (tmp_path / "plain").touch()
    save_atomic(Image.new("RGB", (4, 4)), tmp_path / "a.jpg")
    assert (tmp_path / "a.jpg").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_saving_from_many_threads_leaves_one_whole_picture(tmp_path):
    pictures = [Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in range(8)]
    threads = [threading.Thread(target=save_atomic, args=(picture, tmp_path / "a.png")) for picture in pictures]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["a.png"]
    assert open_photo(tmp_path / "a.png").size == (64, 64)


def test_check_writable_finds_the_fault_and_leaves_nothing(tmp_path):
    check_writable(tmp_path / "ok.jpg")
    (tmp_path / "file").touch()
    for path, words in [
        (tmp_path / "a.xyz", "unknown format"),
        (tmp_path / "noending", "unknown format"),
        (tmp_path / "no" / "a.png", "does not exist"),
        (tmp_path / "file" / "a.png", "does not exist"),
        (tmp_path / f"{'n' * 300}.png", "cannot be written"),
    ]:
        with pytest.raises(PhotoError, match=words):
            check_writable(path)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PhotoError, match="is a folder"):
        check_writable(tmp_path / "folder.png")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


@pytest.mark.parametrize("size", [(128, 128), (160, 96), (96, 192), (1, 1), (2000, 1000)])
def test_comparison_shows_both_photos_large_enough(size):
    words = "the picture turns into a calm night scene under deep blue light " * 3
    picture = compare_picture(Image.new("RGB", size, RED), Image.new("RGB", size, GREEN), "pneumono" * 30, words)
    shown = np.asarray(picture)
    for colour in (RED, GREEN):
        rows, columns = np.nonzero((shown == colour).all(-1))
        assert 383 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 768
    assert (shown[-10:] == 255).all() and (shown[:, -10:] == 255).all()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff"])
def test_a_header_tells_the_upright_size(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (40, 20), RED).save(tmp_path / name, exif=exif)
    size = open_photo(tmp_path / name).size
    assert upright_size(tmp_path / name) == size == ((40, 20) if orientation < 5 else (20, 40))
    assert fit_size(size, 128, 16) == fit(open_photo(tmp_path / name), 128, 16)[0].size


def test_a_header_is_all_that_is_read_of_a_photo(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:2000])
        assert upright_size(tmp_path / name) == (200, 300)


def test_what_has_no_header_has_no_size(tmp_path):
    (tmp_path / "text.jpg").write_text("this is not a picture")
    for path in (tmp_path / "text.jpg", tmp_path / "missing.jpg", tmp_path, Path("/dev/zero")):
        assert upright_size(path) is None


def test_a_picture_tells_what_it_is_told(tmp_path):
    about = {"Instruction": 'größer, "heller" \u2713 \n<b>', "Seed": "3"}
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8))
    for suffix in ("png", "jpg", "webp", "tiff", "bmp"):
        save_atomic(picture, tmp_path / f"a.{suffix}", about)
        save_atomic(picture, tmp_path / f"b.{suffix}")
        told, plain = (Image.open(tmp_path / f"{name}.{suffix}") for name in "ab")
        assert np.array_equal(told, plain)
        if suffix == "png":
            assert told.text == about and plain.text == {}
        elif suffix == "tiff":
            assert json.loads(told.getexif()[ExifTags.Base.ImageDescription]) == about
        elif suffix != "bmp":
            comment = told.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
            assert json.loads(comment.removeprefix(b"ASCII\0\0\0")) == about and not plain.getexif()
