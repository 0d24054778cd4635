"""Photos in and out: open what people are likely to have, fit it to the model, save it whole or not at all.

Pictures travel as Pillow RGB images until `to_pixels` and `clip_pixels` turn them into arrays.
"""

import io
import json
import math
import os
import re
import secrets
import stat
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from PIL import ExifTags, Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from mgie_jax.paths import AnyPath, is_remote, to_path

MAX_ASPECT = 2.0
# OpenAI CLIP's channel statistics, as in its preprocessor_config.json: RGB, for channels in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# The suffixes a picture may be saved under.
SAVE_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}


class PhotoError(ValueError):
    """A photo cannot be read or written; one line that names the file and what to do about it."""


def open_photo(path: str | os.PathLike) -> Image.Image:
    """Read a photo as an upright 8-bit sRGB image.

    Takes every raster format Pillow reads; of an animation, the first frame. EXIF rotation is applied,
    an embedded colour profile is converted, transparency is composited on white, 16-bit and floating
    point channels are scaled to 8 bits.

    Raises `PhotoError` where there is no such file, it may not be read, it is not a picture, it is
    damaged, or it has more than about 179 million pixels.
    """
    path = to_path(path)
    if is_remote(path):
        return _decoded(io.BytesIO(_fetched(path)), str(path))
    _check_readable(path)
    return _decoded(path, str(path))


def decode_photo(content: bytes, name: str) -> Image.Image:
    """`open_photo` for a picture file held in memory; `name` stands for it in errors."""
    return _decoded(io.BytesIO(content), name)


def upright_size(path: str | os.PathLike) -> tuple[int, int] | None:
    """Width and height that `open_photo` would give, from the file's header; None where that cannot be had.

    It may err about a photo that tells its rotation behind its pixels, as a PNG can.
    """
    path = to_path(path)
    try:
        if not is_remote(path):
            _check_readable(path)
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                # Pillow would decode a whole PNG to look for what is not among its first chunks; TIFFs it turns itself.
                told = "exif" in image.info if image.format == "PNG" else image.format != "TIFF"
                turned = told and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
                return image.size[::-1] if turned else image.size
    except Exception:  # whatever it is, `open_photo` says it
        return None


def fit_size(size: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int]:
    """The size to which `fit` brings a photo of `size`, both as width and height."""
    if not 0 < multiple <= resolution:
        raise ValueError(f"resolution {resolution} must be at least multiple {multiple}, both positive")
    aspect = min(max(size[0] / size[1], 1 / MAX_ASPECT), MAX_ASPECT)

    def cost(size: tuple[int, int]) -> float:
        w, h = size
        return abs(math.log(w / h / aspect)) + 0.5 * abs(math.log(w * h / resolution**2))

    sides = range(multiple, 2 * resolution + 1, multiple)
    return min(((w, h) for w in sides for h in sides if max(w, h) <= MAX_ASPECT * min(w, h)), key=cost)


def fit(photo: Image.Image, resolution: int, multiple: int) -> tuple[Image.Image, str | None]:
    """Resize a photo to about `resolution`^2 pixels with both sides multiples of `multiple`.

    The sides keep the photo's aspect ratio as nearly as the multiples allow, at most 2:1; what sticks out
    is cropped evenly from both ends. The second value says in words what was cropped, or is None where
    that is less than 2 % of a side. Raises ValueError where `resolution` is below `multiple` or either is not
    positive.
    """
    width, height = photo.size
    size = fit_size(photo.size, resolution, multiple)
    trimmed_w = 1 - min(1.0, size[0] / size[1] * height / width)
    trimmed_h = 1 - min(1.0, size[1] / size[0] * width / height)
    note = None
    if max(trimmed_w, trimmed_h) >= 0.02:
        share, side, ends = max((trimmed_w, "width", "left and right"), (trimmed_h, "height", "top and bottom"))
        note = f"{share:.0%} of the photo's {side} was cropped, evenly at {ends}"
    return ImageOps.fit(photo, size, Image.Resampling.LANCZOS), note


def to_pixels(photo: Image.Image) -> Float[np.ndarray, "h w 3"]:
    """RGB image -> float32 in [-1, 1], the VAE's input."""
    return np.asarray(photo, np.float32) / 127.5 - 1.0


def clip_pixels(
    photo: Image.Image, image_size: int, mean: Sequence[float], std: Sequence[float]
) -> Float[np.ndarray, "s s 3"]:
    """CLIP's preprocessing: shortest side to `image_size` (bicubic), centre crop, (rgb / 255 - mean) / std.

    Equals Hugging Face's `CLIPImageProcessorPil`, channels last; float32. Written out because importing
    that class takes seconds. Meant for photos that went through `fit`: a much longer one costs memory.
    """
    width, height = photo.size
    # The long side is truncated, not rounded: that is the reference's arithmetic.
    size = (
        (image_size, int(image_size * height / width))
        if width <= height
        else (int(image_size * width / height), image_size)
    )
    resized = photo.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - image_size) // 2, (size[1] - image_size) // 2
    cropped = resized.crop((left, top, left + image_size, top + image_size))
    normalised = (np.asarray(cropped, np.float32) / 255.0 - np.asarray(mean)) / np.asarray(std)
    return normalised.astype(np.float32)


def check_writable(path: str | os.PathLike) -> None:
    """Raise `PhotoError` unless `save_atomic` can write there: call it before the long work."""
    path = to_path(path)
    _save_format(path)
    if is_remote(path):  # what the account may do shows when it does it
        return
    try:
        if path.is_dir():
            raise PhotoError(f"{path}: is a folder; name a file in it, such as {path / 'edited.png'}")
        if not path.parent.is_dir():
            raise PhotoError(f"{path}: the folder {path.parent} does not exist; create it first")
        path.exists()  # a name too long for the file system shows itself here
        probe = _temporary(path)
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        probe.unlink()
    except OSError as error:
        raise PhotoError(f"{path}: cannot be written ({_reason(error)}); choose another place") from error


def save_atomic(image: Image.Image, path: str | os.PathLike, about: Mapping[str, str] | None = None) -> None:
    """Write a picture in the format of its suffix so that `path` is either whole or as it was before.

    JPEG and WebP are written at quality 95. Raises `PhotoError` for an unknown suffix or a failed write.

    Args:
        about: what the file tells of the picture: in PNG a text chunk (iTXt) each; one JSON object in the UserComment
            of JPEG and WebP, the ImageDescription of TIFF; BMP has no place for it.
    """
    path = to_path(path)
    encoded = io.BytesIO()
    image.save(encoded, _save_format(path), quality=95, **_told(_save_format(path), about or {}))
    if is_remote(path):
        path.write_bytes(encoded.getvalue())
        return
    temporary = _temporary(path)
    try:
        with open(temporary, "xb") as file:
            file.write(encoded.getbuffer())
        os.replace(temporary, path)
    except OSError as error:
        raise PhotoError(f"{path}: cannot be written ({_reason(error)})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _fetched(path: AnyPath) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise PhotoError(f"{path}: there is no such file; check its name and folder") from error
    except OSError as error:
        raise PhotoError(f"{path}: cannot be read ({_reason(error)}); check name and permissions") from error
    if not content:
        raise PhotoError(f"{path}: the file is empty; copy or download it again")
    return content


def _check_readable(path: AnyPath) -> None:
    try:
        info = path.stat()
    except FileNotFoundError as error:
        raise PhotoError(f"{path}: there is no such file; check its name and folder") from error
    except (OSError, ValueError) as error:
        raise PhotoError(f"{path}: cannot be read ({_reason(error)}); check name and permissions") from error
    if stat.S_ISDIR(info.st_mode):
        raise PhotoError(f"{path}: is a folder; name one photo in it")
    if not stat.S_ISREG(info.st_mode):
        raise PhotoError(f"{path}: is not a regular file; save the photo to one first")
    if info.st_size == 0:
        raise PhotoError(f"{path}: the file is empty; copy or download it again")
    if not os.access(path, os.R_OK):
        raise PhotoError(f"{path}: you may not read it; change its permissions (chmod u+r)")


def _decoded(file: AnyPath | io.BytesIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Between Pillow's warning (89 MP) and its error (179 MP) lie real panoramas.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if image.format in ("EPS", "WMF"):  # decoded by running other programs
                    raise Image.UnidentifiedImageError
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, MemoryError) as error:
        raise PhotoError(f"{name}: has too many pixels; make it smaller than 170 megapixels first") from error
    except Image.UnidentifiedImageError as error:
        raise PhotoError(f"{name}: is not a picture this can read; convert it to JPEG or PNG") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError, ... at will
        raise PhotoError(f"{name}: is damaged or cut short ({_reason(error)}); copy it again") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bit(image)
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        # The profile describes the colours; white is laid under them once they are sRGB, as white is.
        colours = _to_srgb(image.convert("RGB"), profile)
        rgb = Image.composite(colours, Image.new("RGB", image.size, "white"), image.getchannel("A"))
    else:
        rgb = _to_srgb(image, profile)
    rgb.info = {}  # Pillow would save the old profile and rotation with the new picture
    return rgb


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bits or floats -> L. Pillow's own conversion clips at 255 instead of scaling."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = (0.0, values.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and 255 < high <= 65535 and values.min() >= 0):
        high = 65535.0
    elif values.min() >= 0 and high <= 1 and image.mode == "F":
        high = 1.0
    elif values.min() >= 0 and high <= 255:
        high = 255.0
    else:
        low = values.min()
    scaled = (values - low) / max(high - low, 1e-12) * 255.0
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert by the embedded profile (phones write Display P3, printers CMYK); without one, plainly."""
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a broken profile, or one for other channels: the picture is still good without it
    return image.convert("RGB")


def _save_format(path: AnyPath) -> str:
    try:
        return SAVE_FORMATS[path.suffix.lower()]
    except KeyError:
        known = " ".join(SAVE_FORMATS)
        raise PhotoError(f"{path}: unknown format {path.suffix!r}; end the name in one of {known}") from None


def _told(name: str, about: Mapping[str, str]) -> dict:
    """Arguments with which Pillow writes `about` into a file of the format `name`."""
    if not about:
        return {}
    if name == "PNG":
        chunks = PngInfo()
        for key, text in about.items():
            chunks.add_itxt(key, text)
        return {"pnginfo": chunks}
    text = json.dumps(dict(about))  # ASCII, beyond which EXIF and TIFF have no encoding that all readers know
    if name == "TIFF":
        return {"tiffinfo": {ExifTags.Base.ImageDescription: text}}
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0" + text.encode()
    return {"exif": exif}


def is_unfinished(name: str) -> bool:
    """Whether a file is what a killed `save_atomic` left."""
    return re.fullmatch(r"(.*/)?\.mgie-[0-9a-f]{16}\.tmp", name) is not None


def _temporary(path: AnyPath) -> AnyPath:
    return path.parent / f".mgie-{secrets.token_hex(8)}.tmp"


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()
