"""Image formats, recognised by content: those that can be read, and why others cannot."""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError, features

from .decoder_warnings import collect_warnings

# Formats with a signature. EPS is excluded because it runs another program, TGA because it accepts any file.
# HEIF and JPEG XL need a plugin for Pillow.
_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "JXL", "PNG", "PPM", "TIFF", "WEBP")
_NEEDS = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # optional features of Pillow

IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".heic", ".heics", ".heif", ".heifs", ".hif", ".ico", ".j2c",
    ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".jxl", ".pbm", ".pfm", ".pgm", ".png",
    ".pnm", ".ppm", ".tif", ".tiff", ".webp",
    # and those that cannot be read
    ".arw", ".cr2", ".cr3", ".dcm", ".dds", ".dng", ".exr", ".hdr", ".nef", ".orf", ".pcx", ".psd", ".qoi", ".raf",
    ".rw2", ".tga", ".xcf",
})  # fmt: skip
"""Suffixes of pictures, in lower case. Such a file is never skipped silently: if it cannot be read, it gets an error
record. Drawings and documents (SVG, EPS, PDF) are not included."""

_RAW = "is a raw photograph, which cannot be read: develop it to PNG or JPEG first, for example with rawpy"
_DRAWING = "is a vector drawing or a document ({}), which cannot be read: convert it to PNG"
_SIGNS = (  # pattern of the first bytes, whether it is a raster image, and why it cannot be read
    (rb".{4}ftyp.{0,32}avi[fs]", True, "is of the format AVIF, which this Pillow cannot read: pip install -U Pillow"),
    (
        rb".{4}ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)",
        True,
        "is of the format HEIC, which needs another library: pip install pillow-heif",
    ),
    (
        rb"\xff\x0a|\0\0\0\x0cJXL ",
        True,
        "is of the format JPEG XL, which needs another library: pip install pillow-jxl-plugin",
    ),
    (rb".{4}ftypcrx |II\*\0.{4}CR|FUJIFILMCCD-RAW|IIU\0|IIR[OS]", True, _RAW),
    (rb"8BPS", True, "is of the format PSD, which cannot be read: convert it to PNG"),
    (rb"\x76\x2f\x31\x01", True, "is of the format OpenEXR, which cannot be read: convert it to PNG"),
    (rb"#\?(RADIANCE|RGBE)", True, "is of the format Radiance HDR, which cannot be read: convert it to PNG"),
    (rb".{128}DICM", True, "is of the format DICOM, which cannot be read: convert it to PNG, for example with pydicom"),
    (rb"%PDF", False, _DRAWING.format("PDF")),
    (rb"%!PS|\xc5\xd0\xd3\xc6", False, _DRAWING.format("EPS")),
    (rb"(\xef\xbb\xbf)?\s*<(svg|(\?xml|!--|!DOCTYPE svg).*<svg)\b", False, _DRAWING.format("SVG")),
    (rb"(\xef\xbb\xbf)?\s*(<!DOCTYPE html|<html)", False, "is a web page and no image: the download may have failed"),
    (
        rb"version https://git-lfs",
        False,
        "is a pointer of Git LFS and no image: fetch the files themselves with `git lfs pull`",
    ),
    (rb".{4}ftyp|\x1a\x45\xdf\xa3|RIFF.{4}AVI ", False, "is a video and no image"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", False, "is an archive and no image: unpack it"),
)
_PLUGINS = (  # first bytes, module of the Pillow plugin that reads them, and the function that registers it
    (rb".{4}ftyp", "pillow_heif", "register_heif_opener"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "pillow_jxl", None),  # registers itself
)
_HEAD = 1024
_SUBFILE_TYPE, _DNG_VERSION = 254, 50706


class UnreadableImageError(Exception):
    """Content that is not an image of a readable format; the message is a predicate, such as "is a web page"."""


def readable() -> list[str]:
    """Return the names of the formats that the installed Pillow can read."""
    Image.init()  # fills OPEN; Image.open fails if asked for a format that Pillow lacks
    return [f for f in _FORMATS if f in Image.OPEN and (f not in _NEEDS or features.check(_NEEDS[f]))]


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image without decoding it. Plugins for HEIC and JPEG XL are used if they are installed.

    Raises:
        UnreadableImageError: The format cannot be read.
    """
    head = file.read(_HEAD)
    file.seek(0)
    try:
        try:
            image = Image.open(file, formats=readable())
        except UnidentifiedImageError:
            if not _register_plugin(head):
                raise
            file.seek(0)
            image = Image.open(file, formats=readable())
    except UnidentifiedImageError as error:
        raise UnreadableImageError(_why_not(head)) from error
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        first_is_preview = tags.get(_SUBFILE_TYPE, 0) == 1  # as in NEF and DNG, where the photograph comes later
        if first_is_preview or _DNG_VERSION in tags or re.match(rb"II\*\0.{4}CR", head, re.DOTALL):
            raise UnreadableImageError(_RAW)
    return image


def is_image(path: Path) -> bool:
    """Return whether a file is a picture: by its suffix, or by its content if the suffix is not in `IMAGE_SUFFIXES`.

    A file that cannot be opened counts as a picture, so that it is reported when it is loaded.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        file = path.open("rb")
    except OSError:
        return True
    with file, collect_warnings():  # `load_image` keeps them
        head = file.read(_HEAD)
        file.seek(0)
        if any(pixels and re.match(sign, head, re.DOTALL) for sign, pixels, _ in _SIGNS):
            return True
        try:
            Image.open(file, formats=readable())
        except Exception as error:  # Pillow may raise nearly any exception
            return isinstance(error, Image.DecompressionBombError)
    return True


def _register_plugin(head: bytes) -> bool:
    """Register the plugin that reads such a file; return False if it is not installed or was registered before."""
    for sign, module, function in _PLUGINS:
        if re.match(sign, head, re.DOTALL) and find_spec(module) is not None:
            before = readable()
            plugin = importlib.import_module(module)
            if function is not None:
                getattr(plugin, function)()
            return readable() != before
    return False


def _why_not(head: bytes) -> str:
    for sign, _, reason in _SIGNS:
        if re.match(sign, head, re.DOTALL | re.IGNORECASE):
            return reason
    return f"is no image of a known format ({', '.join(readable())}), or is broken"
