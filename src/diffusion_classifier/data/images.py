"""Find, decode, check and resize images. The rest of the package only receives valid ones."""

import hashlib
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import InputError
from .decoder_warnings import collect_warnings
from .formats import UnreadableImageError, open_image

Crop: TypeAlias = Literal["center", "adm"]

MAX_PIXELS = 89_478_485
"""Larger images are rejected before they are decoded. Pillow itself only warns from this size on."""
MAX_EDGE = 65_535
"""Maximum edge of JPEG and GIF. Pillow may need time that grows with the square of a row's length."""
WARNED = "warning: "
"""Prefix of a note that quotes a warning of Pillow."""

_CLUTTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "icon\r")
"""Files that Windows, macOS and network storage add to folders, in lower case."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(InputError):
    """An image that cannot be used. The message is one sentence with its name and the reason."""


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        image: Upright, mode RGB, 8 bit, without metadata.
        name: The path as given, or the caller's name.
        notes: Choices that were made, such as "first of 12 frames", and warnings of Pillow.
    """

    image: Image.Image
    name: str
    notes: tuple[str, ...] = ()

    @cached_property
    def key(self) -> int:
        """Hash of size and pixels, in [0, 2⁶⁴): independent of the file name and of the (lossless) format."""
        content = b"%d %d " % self.image.size + self.image.tobytes()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Tensor | Picture


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the files as given, and the files in folders at any depth, sorted.

    All `visible` files of a folder are listed, whatever their suffix, so that a file that is no image is reported when
    it is loaded. Links are followed, but not to a folder above.

    Raises:
        ImageError: A path does not exist or is a URL; or a folder is empty or cannot be read.
    """
    found: list[Path] = []
    for given in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = _existing(given)
        try:
            files = list(_walk(path, frozenset())) if path.is_dir() else [path]
        except OSError as error:
            raise ImageError(f"{path}: the folder cannot be read: {error}") from error
        if not files:
            raise ImageError(f"{path}: the folder holds no files")
        found += files
    return found


def visible(name: str) -> bool:
    """Return whether a name is neither hidden nor that of a file that an operating system adds."""
    return not name.startswith(".") and name.lower() not in _CLUTTER


def load_image(
    source: ImageSource, name: str | None = None, background: tuple[int, int, int] = (255, 255, 255)
) -> Picture:
    """Decode and check one image.

    The first frame of an animation is used, EXIF orientation is applied, and transparent parts are laid on
    `background`. A 16-bit grey value v becomes v / 257, rounded; Pillow reads the high byte of 16-bit colours. A file
    of 32-bit integers counts as 8 bit if no value exceeds 255, otherwise as 16 bit. Colour profiles are ignored, as in
    the published evaluations. Warnings of Pillow are added to the notes of the picture.

    Args:
        source: A path; the content of an image file as bytes; a PIL image of any mode (its current frame, which is not
            modified); an array (H, W) or (H, W, C) or a tensor (H, W) or (C, H, W) with C of 1, 3 (RGB) or 4 (RGBA),
            with type and range as in `to_uint8`; or a `Picture`, whose notes are kept.
        name: Name for messages and results. Default: the path, the picture's name, or "image".
        background: RGB, each in 0..255.

    Raises:
        ImageError: The source does not exist, is not an image, broken, empty, larger than `MAX_PIXELS` or `MAX_EDGE`,
            or has another shape, type or range.
    """
    path: Path | None = None
    if isinstance(source, str | os.PathLike):
        path = _regular_file(source)
        name = name or str(source)
    name = name or (source.name if isinstance(source, Picture) else "image")
    notes: list[str] = []
    with collect_warnings() as warned:
        try:
            if path is not None:
                with path.open("rb") as file:
                    image = _decoded(file, background, notes)
            elif isinstance(source, bytes):
                if not source:
                    raise ImageError("has no image")
                image = _decoded(BytesIO(source), background, notes)
            elif isinstance(source, Picture):
                notes += source.notes
                image = _upright_rgb(source.image, background, notes)
            else:
                opened = source if isinstance(source, Image.Image) else _from_array(source, notes)
                image = _upright_rgb(opened, background, notes)
        except MemoryError:
            raise
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from None
        except UnreadableImageError as error:
            raise ImageError("; ".join((f"{name}: {error}", *warned))) from error
        except Exception as error:  # a broken file makes Pillow raise nearly anything: SyntaxError, IndexError …
            reasons = "; ".join((str(error) or type(error).__name__, *warned))
            raise ImageError(f"{name}: cannot be read as an image: {reasons}") from error
    return Picture(image, name, (*notes, *(WARNED + text for text in warned)))


def preprocess(
    image: Image.Image,
    size: int,
    *,
    crop: Crop = "center",
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic",
) -> Tensor:
    """Resize and crop to a square: float32 (3, size, size) in [-1, 1]. An image of that size keeps its pixels.

    "center" is torchvision's Resize, CenterCrop, ToTensor and Normalize(0.5, 0.5) with their rounding, as in the
    published evaluation of Stable Diffusion. "adm" is DiT's preprocessing (`center_crop_arr` of Dhariwal & Nichol
    2021): the image is halved by a box filter while its shorter edge is at least twice `size`, then resized and cropped
    with a different rounding.

    Args:
        image: Image in mode RGB, as in `Picture.image`.
        size: Edge in pixels, at least 1.
        crop: See above.
        interpolation: Filter of the resize (of the last one for "adm"), antialiased except "nearest".

    Raises:
        ImageError: The image is not RGB, or so narrow that it would exceed `MAX_PIXELS` before the crop.
        InputError: `size`, `crop` or `interpolation` has another value.
    """
    if size < 1 or crop not in ("center", "adm") or interpolation not in ("bicubic", "bilinear", "lanczos", "nearest"):
        raise InputError(f"cannot preprocess with {size=}, {crop=}, {interpolation=}; see the help of preprocess")
    if image.mode != "RGB":
        raise ImageError(f"an image of mode {image.mode} cannot be preprocessed; pass it through load_image first")

    while crop == "adm" and min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    short, long = sorted(image.size)
    longer = int(size * long / short) if crop == "center" else round(long * (size / short))
    if size * longer > MAX_PIXELS:
        raise ImageError(f"an image of {long / short:.0f} : 1 is too narrow for size {size}; crop it first")
    width, height = (size, longer) if image.width <= image.height else (longer, size)
    image = image.resize((width, height), Image.Resampling[interpolation.upper()])

    left, top = (round(d / 2) if crop == "center" else d // 2 for d in (width - size, height - size))
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + size, top + size))))
    return pixels.permute(2, 0, 1).contiguous().float().div(255).mul(2).sub(1)


def _existing(given: str | os.PathLike[str]) -> Path:
    if os.path.exists(given):  # unlike Path.exists it never raises, however odd the name
        return Path(given)
    if re.match(r"[a-z][a-z0-9+.-]+:/", os.fspath(given), re.IGNORECASE):  # Path("s3://x") has lost a slash
        raise ImageError(f"{given}: is a URL; download it first and pass the file")
    raise ImageError(f"{given}: there is no such file or folder")


def _regular_file(given: str | os.PathLike[str]) -> Path:
    path = _existing(given)
    if path.is_dir():
        try:
            os.listdir(path)
        except OSError as error:
            raise ImageError(f"{path}: the folder cannot be read: {error.strerror}") from error
        raise ImageError(f"{path}: is a folder; pass the images in it, which find_images lists")
    if not path.is_file():
        raise ImageError(f"{path}: is not a regular file")  # reading a pipe or a device might never end
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty (0 bytes)")
    return path


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        if not above:
            raise
        yield folder  # reported when it is loaded, while the images beside it are used
        return
    above |= {os.path.realpath(folder)}
    for path in (folder / name for name in names if visible(name)):
        if path.is_dir():
            if os.path.realpath(path) not in above:
                yield from _walk(path, above)
        elif path.is_file() or path.is_symlink():  # a dangling link is a missing image, reported when it is loaded
            yield path


def _decoded(file: BinaryIO, background: tuple[int, int, int], notes: list[str]) -> Image.Image:
    with open_image(file) as opened:
        image = _upright_rgb(opened, background, notes)
        if (frames := getattr(opened, "n_frames", 1)) > 1:
            notes.append(f"first of {frames} frames")
        return image


def _upright_rgb(image: Image.Image, background: tuple[int, int, int], notes: list[str]) -> Image.Image:
    width, height = image.size  # from the header, nothing is decoded yet
    if not (0 < width * height <= MAX_PIXELS and max(width, height) <= MAX_EDGE):
        raise ImageError(f"is {width} × {height}; expected 1 to {MAX_PIXELS:,} pixels and edges up to {MAX_EDGE:,}")
    # Depending on Pillow's version, 16-bit PNG and PGM have mode "I" or "I;16": the format implies the number of bits.
    # An array or a TIFF of 32-bit integers does not state it.
    is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format not in (None, "TIFF"))
    image = image.copy()  # decodes; and the conversions below write into palette and info
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except (OSError, SyntaxError, ValueError, struct.error):
        orientation = None
        notes.append("unreadable EXIF ignored")

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # Pillow's own conversion clips them at 255
        pixels = np.asarray(image)
        is_16_bit = is_16_bit or (image.mode == "I" and pixels.min() >= 0 and 255 < pixels.max() <= 65535)
        grey = _from_16_bit(pixels, notes) if is_16_bit else to_uint8(pixels, notes)
        transparent = image.info.get("transparency")  # the transparent value, in a PNG of 16-bit greys
        image = Image.fromarray(grey)
        if isinstance(transparent, int):
            image.putalpha(Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8)))
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no other conversion of it
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
            notes.append(f"transparent parts on {'white' if background == (255, 255, 255) else f'RGB {background}'}")
    image = image.convert("RGB")
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    image.info.clear()  # otherwise the next reader would apply the orientation again
    return image


def _from_array(source: object, notes: list[str]) -> Image.Image:
    if isinstance(source, Tensor):
        tensor = source.detach().cpu()
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # numpy has no bfloat16
        layout, channels = "(C, H, W)", 0
    elif isinstance(source, np.ndarray):
        array, layout, channels = source, "(H, W, C)", -1
    else:
        raise ImageError(f"no image can be made of a {type(source).__name__}; pass a path, a PIL image or an array")

    shape = array.shape
    if len(shape) == 4:
        raise ImageError(f"is a batch of shape {shape}; pass its images one by one")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[channels] not in (1, 3, 4)):
        other = shape[-1 - channels] in (1, 3, 4) if len(shape) == 3 else False
        advice = ": permute its dimensions, which seem to be in another order" if other else ""
        raise ImageError(f"has shape {shape}; expected (H, W) or {layout} with C of 1, 3 or 4{advice}")
    if array.size == 0:
        raise ImageError(f"has shape {shape} and so no pixels")
    if len(shape) == 3:
        array = np.moveaxis(array, channels, -1)
        array = array[..., 0] if shape[channels] == 1 else array

    return Image.fromarray(np.ascontiguousarray(to_uint8(array, notes)))


def to_uint8(array: NDArray[Any], notes: list[str]) -> NDArray[np.uint8]:
    """Convert pixels to 8-bit values. The type determines which value is white.

    uint8 is kept; bool becomes 0 or 255; floating point is in [0, 1]; uint16 is in 0..65535 and must exceed 255
    somewhere; other integers are in 0..255 and must exceed 1 somewhere. Arrays of zeros are black whatever their type.

    Args:
        array: Not empty, any shape.
        notes: List to which a sentence is added for each choice.

    Raises:
        ImageError: The type is not supported, values are out of range, or it is unclear which value is white.
    """
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array
    if kind == "b":
        return array.astype(np.uint8) * 255
    if kind not in "uif":
        raise ImageError(f"has values of type {array.dtype}; convert them to uint8, or to floats in [0, 1]")
    low, high = array.min(), array.max()
    if kind == "f":
        _check_floats(float(low), float(high))
        return np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    told = f"has values of type {array.dtype} from {low} to {high}"
    if array.dtype.type is np.uint16:  # in either byte order
        if 0 < high <= 255:
            raise ImageError(
                f"{told}, which is black if 65535 is white: pass x.astype('uint8') if 255 is, x / 65535 if 65535 is"
            )
        return _from_16_bit(array, notes)
    if low < 0 or high > 255:
        raise ImageError(f"{told}; expected 0 to 255: pass uint16 if 65535 is white, or floats in [0, 1]")
    if high == 1:
        raise ImageError(f"{told}: pass booleans if 1 is white, uint8 if 255 is")
    if high:
        notes.append(f"values of type {array.dtype} up to {high} read as 8 bit")
    return array.astype(np.uint8)


def _from_16_bit(array: NDArray[Any], notes: list[str]) -> NDArray[np.uint8]:
    notes.append("16 bit reduced to 8")
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # v / 257 is never halfway between integers


def _check_floats(low: float, high: float) -> None:
    if low >= 0 and high <= 1:  # false for NaN
        return
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError(f"has values that are not finite, from {low} to {high}; expected floats in [0, 1]")
    if -1 <= low < 0 and high <= 1:
        advice = "pass (x + 1) / 2 if they were made for [-1, 1], and clip them if they only overshoot"
    elif low >= 0 and 2 < high <= 255:
        advice = "pass x / 255 if they were made for [0, 255]"
    else:
        advice = "undo their normalization, for example by x * std + mean, and clip them if they only overshoot"
    raise ImageError(f"has floating-point values from {low} to {high}; expected [0, 1]: {advice}")
