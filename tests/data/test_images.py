import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from diffusion_classifier.data import images
from diffusion_classifier.data.images import ImageError, InputError, find_images, load_image, preprocess

few = settings(max_examples=50, deadline=None)
rgb_arrays = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))
# No symmetry: every orientation of it differs from every other.
LANDSCAPE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def pixels(source, **kwargs):
    return np.asarray(load_image(source, **kwargs).image)


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def file_of(folder, content, name="image"):
    path = folder / name
    path.write_bytes(content)
    return path


def chunk(tag, data):
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def png(width, height, depth, color_type, rows, extra=b""):
    """A PNG written by hand; Pillow cannot write all that it reads."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FIRST, SECOND = Image.fromarray(LANDSCAPE), Image.fromarray(LANDSCAPE[::-1])
SAMPLES = {
    "PNG": encoded(FIRST, "PNG"),
    "APNG": encoded(FIRST, "PNG", save_all=True, append_images=[SECOND]),
    "JPEG": encoded(FIRST, "JPEG", exif=oriented(6)),
    "GIF": encoded(FIRST, "GIF", save_all=True, append_images=[SECOND]),
    "WEBP": encoded(FIRST, "WEBP", lossless=True, save_all=True, append_images=[SECOND]),
    "TIFF": encoded(FIRST, "TIFF", save_all=True, append_images=[SECOND]),
    "TIFF LZW": encoded(FIRST, "TIFF", compression="tiff_lzw"),
    "BMP": encoded(FIRST, "BMP"),
    "ICO": encoded(FIRST.resize((16, 16)), "ICO"),
    "PPM": encoded(FIRST, "PPM"),
    "JPEG2000": encoded(FIRST, "JPEG2000"),
}


# Arrays and tensors


@given(rgb_arrays)
@few
def test_any_8_bit_array_comes_back_unchanged(array):
    picture = load_image(array)
    assert (picture.image.mode, picture.notes) == ("RGB", ())
    np.testing.assert_array_equal(picture.image, array)
    for same in (
        Image.fromarray(array),
        np.asfortranarray(array),
        (array / 255).astype(np.float16),
        array / 255,
        array.astype(np.uint16) * 257,
        (array.astype(np.uint16) * 257).astype(">u2"),
        np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
        torch.from_numpy(array).permute(2, 0, 1),
        torch.from_numpy(array.astype(np.uint16) * 257).permute(2, 0, 1),
        (torch.from_numpy(array).permute(2, 0, 1) / 255).requires_grad_(),
    ):
        assert load_image(same).key == picture.key


WIDE = (np.int16, np.int32, np.int64, np.uint32, np.uint64, ">i4")


@given(st.sampled_from([(), (1,), (3,)]).flatmap(
    lambda c: hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), *map(st.just, c)))
).filter(lambda a: a.max() > 1), st.sampled_from(WIDE))  # fmt: skip
@few
def test_wide_integers_up_to_255_are_the_picture_of_the_same_bytes(array, dtype):
    as_file = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    picture = load_image(array.astype(dtype))
    assert picture.key == load_image(encoded(as_file, "PNG")).key
    assert picture.notes == (f"values of type {np.dtype(dtype)} up to {array.max()} read as 8 bit",)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(lambda a: a.max() > 1))
@few
def test_grey_integers_of_a_tiff_are_the_picture_of_the_same_bytes(array):
    wide = Image.fromarray(array.astype(np.int32))
    for source in (wide, encoded(wide, "TIFF")):
        assert load_image(source).key == load_image(encoded(Image.fromarray(array), "PNG")).key


@pytest.mark.parametrize("dtype", [*WIDE, np.uint8, np.uint16, np.float32, np.bool_])
def test_zeros_are_black_whatever_their_type(dtype):
    picture = load_image(np.zeros((2, 3), dtype))
    assert (picture.image.getcolors(), [n for n in picture.notes if "8 bit" in n]) == ([(6, (0, 0, 0))], [])


def test_a_dark_file_of_16_bit_stays_dark(tmp_path):
    words = np.array([[0, 200], [100, 255]], np.uint16)
    Image.fromarray(words).save(tmp_path / "a.png")
    (tmp_path / "a.pgm").write_bytes(b"P5 2 2 65535\n" + words.astype(">u2").tobytes())
    for name in ("a.png", "a.pgm"):
        picture = load_image(tmp_path / name)
        assert np.asarray(picture.image)[..., 0].tolist() == [[0, 1], [0, 1]]
        assert picture.notes == ("16 bit reduced to 8",)


def test_every_8_and_16_bit_value():
    bytes_ = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(pixels(bytes_)[..., 1], bytes_)
    words = np.arange(65536).reshape(256, 256)
    expected = np.floor(words / 257 + 0.5)
    np.testing.assert_array_equal(pixels(words.astype(np.uint16))[..., 2], expected)
    np.testing.assert_array_equal(pixels(words / 65535)[..., 0], expected)


def test_grey_bool_and_single_channel_arrays():
    grey = np.array([[0, 100, 255]], np.uint8)
    expected = np.repeat(grey[..., None], 3, axis=2)
    for same in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        np.testing.assert_array_equal(pixels(same), expected)
    expected = [[[0, 0, 0], [255, 255, 255]]]
    np.testing.assert_array_equal(pixels(np.array([[False, True]])), expected)
    np.testing.assert_array_equal(pixels(torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16)), expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), r"batch of shape \(2, 4, 4, 3\)"),
        (torch.zeros(1, 3, 4, 4), r"batch of shape \(1, 3, 4, 4\)"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\).*\(H, W, C\)"),
        (torch.zeros(4, 5, 3)[:2], r"shape \(2, 5, 3\).*\(C, H, W\)"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros(5, np.uint8), r"\(5,\)"),
        (np.zeros((), np.uint8), r"\(\)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 0)), "no pixels"),
        (torch.zeros(3, 0, 4), "no pixels"),
        (torch.linspace(-1, 1, 12).view(3, 2, 2), r"-1\.0 to 1\.0; expected \[0, 1\]: pass \(x \+ 1\) / 2"),
        (np.full((2, 2), 255.0), r"255\.0.*x / 255"),
        (np.array([[0.5, np.nan]]), "nan"),
        (np.array([[0.5, np.inf]]), "inf"),
        (np.array([[0.5, -np.inf]], np.float32), "-inf"),
        (np.array([[0, 256]]), r"type int64 from 0 to 256; expected 0 to 255: pass uint16 if 65535 is white"),
        (torch.tensor([[-1, 255]], dtype=torch.int32), "int32 from -1 to 255; expected 0 to 255"),
        (np.array([[-128, 127]], np.int8), "int8 from -128 to 127"),
        (np.array([[0, 1]]), "int64 from 0 to 1: pass booleans if 1 is white, uint8 if 255 is"),
        (np.array([[0, 255]], np.uint16), r"uint16 from 0 to 255, which is black if 65535 is white: pass x.astype"),
        (np.array([[-0.01, 1.01]]), r"-0\.01 to 1\.01; expected \[0, 1\]: undo their normalization.*clip them"),
        (np.array([[-2.1, 2.6]]), r"x \* std \+ mean"),
        (np.array([[np.nan, 1.0]]), "values that are not finite"),
        (np.zeros((3, 8, 8), np.uint8), "permute its dimensions"),
        (np.zeros((1, 8, 8), np.uint8), "permute its dimensions"),
        (torch.zeros(8, 8, 3), "permute its dimensions"),
        (b"", "^image 7: has no image$"),
        (np.zeros((2, 2), np.complex64), "complex64"),
        (np.array([["a"]]), "<U1"),
        (np.array([[None]]), "object"),
        ([[1, 2], [3, 4]], "list"),
        (b"\x89PNG", "no image of a known format"),
        (None, "NoneType"),
        (Image.new("RGB", (0, 5)), "0 × 5"),
        (Image.fromarray(np.array([[-1, 3]], np.int32)), "-1 to 3"),
        (Image.fromarray(np.array([[0, 65536]], np.int32)), "0 to 65536"),
        (Image.fromarray(np.array([[0, 255]], np.float32)), r"0\.0 to 255\.0"),
    ],
)
def test_bad_sources_are_refused_with_a_sentence(source, message):
    with pytest.raises(ImageError, match=message) as caught:
        load_image(source, name="image 7")
    assert str(caught.value).startswith("image 7: ")
    assert "\n" not in str(caught.value)


# Modes


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_modes_without_alpha_are_converted_as_pillow_does(mode):
    source = Image.fromarray(LANDSCAPE).convert(mode)
    picture = load_image(source)
    np.testing.assert_array_equal(picture.image, source.convert("RGB"))
    assert picture.notes == ()


@pytest.mark.parametrize(
    ("mode", "dtype"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I", "i4"), ("F", "f4")]
)
def test_modes_of_more_than_8_bits_are_scaled_not_clipped(mode, dtype):
    values = np.array([0, 300, 65535]) / (65535 if mode == "F" else 1)
    source = Image.frombytes(mode, (3, 1), values.astype(dtype).tobytes())
    assert source.mode == mode
    picture = load_image(source)
    assert np.asarray(picture.image)[0, :, 0].tolist() == [0, 1, 255]
    assert picture.notes == (() if mode == "F" else ("16 bit reduced to 8",))


def test_the_transparent_grey_of_a_16_bit_png(tmp_path):
    source = Image.frombytes("I;16", (3, 1), np.array([0, 257, 65535], "<u2").tobytes())
    source.save(tmp_path / "a.png", transparency=257)
    picture = load_image(tmp_path / "a.png", background=(9, 8, 7))
    assert np.asarray(picture.image)[0].tolist() == [[0] * 3, [9, 8, 7], [255] * 3]
    assert any("transparent" in note for note in picture.notes)


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 90)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa", "P"])
def test_transparency_is_composited(mode, background):
    color, alpha = np.array([90, 90, 90]), np.array([0, 1, 128, 254, 255])
    if mode == "P":
        source = Image.fromarray(np.arange(5, dtype=np.uint8)[None]).convert("P")
        source.putpalette([90] * 15)
        source.info["transparency"] = bytes(alpha.tolist())
    else:
        source = Image.fromarray(np.stack([*[np.full(5, 90)] * 3, alpha], axis=1)[None].astype(np.uint8))
        if mode == "PA":  # Pillow converts RGBA to PA with the web palette, which lacks this grey
            grey = Image.new("P", (5, 1))
            grey.putpalette([90] * 3)
            source, transparency = grey.convert("PA"), source.getchannel("A")
            source.putalpha(transparency)
        elif mode == "La":
            source = source.convert("LA").convert("La")
        elif mode != "RGBA":
            source = source.convert(mode)
    assert source.mode == mode
    picture = load_image(source, background=background)
    expected = alpha[:, None] / 255 * color + (1 - alpha[:, None] / 255) * background
    tolerance = 1.5 if mode in ("La", "RGBa") else 1.0  # premultiplied colours are rounded twice
    assert np.abs(np.asarray(picture.image)[0] - expected).max() <= tolerance
    assert picture.notes == (
        "transparent parts on " + ("white" if background == (255, 255, 255) else f"RGB {background}"),
    )


def test_a_transparent_color_is_composited_and_opaque_alpha_is_not_noted(tmp_path):
    row = bytes([1, 2, 3, 4, 5, 6])
    path = file_of(tmp_path, png(2, 1, 8, 2, [row], chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))))
    assert pixels(path, background=(9, 9, 9)).tolist() == [[[9, 9, 9], [4, 5, 6]]]
    assert load_image(Image.new("RGBA", (2, 2), (1, 2, 3, 255))).notes == ()


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "L"])
def test_the_callers_image_is_left_alone(mode):
    source = Image.fromarray(LANDSCAPE).convert(mode)
    if mode == "P":
        source.info["transparency"] = 0
    source.getexif()[0x0112] = 6
    source.info["exif"] = source.getexif().tobytes()
    before = source.copy()
    before_palette, before_info = source.getpalette("RGBA") if mode == "P" else None, dict(source.info)
    picture = load_image(source)
    assert picture.image.size == (4, 6)
    picture.image.putpixel((0, 0), (7, 7, 7))
    assert source == before
    assert source.info == before_info
    if mode == "P":
        assert source.getpalette("RGBA") == before_palette


# Files


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("png", {}),
        ("bmp", {}),
        ("tiff", {}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("webp", {"lossless": True}),
        ("ppm", {}),
        ("jp2", {}),
    ],
)
def test_lossless_files_keep_the_key(tmp_path, suffix, options):
    array = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    Image.fromarray(array).save(path := tmp_path / f"any.{suffix}", **options)
    misnamed = path.rename(tmp_path / "other name.jpg")
    picture = load_image(misnamed)
    assert picture.key == load_image(array).key == load_image(misnamed.read_bytes()).key
    assert picture.name == str(misnamed)
    assert load_image(str(misnamed), name="image 0").name == "image 0"


def test_key_depends_on_shape_and_on_every_pixel():
    array = np.zeros((4, 6, 3), np.uint8)
    others = [array.reshape(6, 4, 3), array.reshape(2, 12, 3), array.reshape(1, 24, 3)]
    for index in np.ndindex(array.shape):
        other = array.copy()
        other[index] = 1
        others.append(other)
    keys = {load_image(a).key for a in [array, *others]}
    assert len(keys) == 1 + len(others)
    assert all(0 <= key < 2**64 for key in keys)
    assert load_image(array).key == 730036523329889073  # runs store it and seeds come from it: it must never change


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, format, orientation):
    upright = np.kron(LANDSCAPE, np.ones((16, 16, 1), np.uint8))  # blocks, that JPEG keeps nearly as they are
    stored = {  # how the EXIF standard says that rows and columns were stored
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1],
        7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    lossless = (
        {"lossless": True} if format == "WEBP" else {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    )
    path = file_of(
        tmp_path, encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=oriented(orientation), **lossless)
    )
    picture = load_image(path)
    assert picture.image.size == (96, 64)
    np.testing.assert_allclose(np.asarray(picture.image, int), upright, atol=3 if format == "JPEG" else 0)
    with Image.open(path) as opened:
        assert load_image(opened).key == picture.key
    assert load_image(picture.image).key == picture.key  # nothing is left that would turn it again


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0"])
def test_broken_exif_does_not_cost_the_picture(tmp_path, exif):
    path = file_of(tmp_path, encoded(Image.fromarray(LANDSCAPE), "PNG", exif=exif))
    picture = load_image(path)
    np.testing.assert_array_equal(picture.image, LANDSCAPE)
    assert picture.notes == ("unreadable EXIF ignored",)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_taken_and_said_so(tmp_path, format):
    first, second = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    lossless = {"lossless": True} if format == "WEBP" else {}
    path = file_of(tmp_path, encoded(first, format, save_all=True, append_images=[second], **lossless))
    picture = load_image(path)
    assert picture.image.getcolors() == [(64, (255, 0, 0))]
    assert picture.notes == ("first of 2 frames",)
    with Image.open(path) as opened:
        opened.seek(1)
        assert load_image(opened).image.getcolors() == [(64, (0, 0, 255))]


def test_16_bit_files(tmp_path):
    words = np.array([[0, 300], [40000, 65535]], np.uint16)
    expected = [[0, 1], [156, 255]]
    Image.fromarray(words).save(tmp_path / "grey.png")
    Image.fromarray(words).save(tmp_path / "grey.tiff")
    for name in ("grey.png", "grey.tiff"):
        picture = load_image(tmp_path / name)
        assert np.asarray(picture.image)[..., 0].tolist() == expected
        assert picture.notes == ("16 bit reduced to 8",)
    rows = [np.repeat(row, 3).astype(">u2").tobytes() for row in words]
    color = pixels(file_of(tmp_path, png(2, 2, 16, 2, rows)))  # Pillow itself keeps the upper byte
    assert np.abs(color[..., 0] - np.array(expected)).max() <= 1


def test_bad_files_are_refused_with_a_sentence(tmp_path):
    whole = SAMPLES["PNG"]
    cases = {
        "text.png": (b"this is not an image", "no image of a known format"),
        "empty.png": (b"", "0 bytes"),
        "half.png": (whole[: len(whole) // 2], "is broken"),
        "cut.png": (whole[:-25], "cannot be read"),
        "cut.jpg": (SAMPLES["JPEG"][:-20], "truncated"),
        "page.jpg": (b"<!DOCTYPE html><html></html>", "is a web page and no image"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        "vector.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "vector drawing .*SVG.* convert it to PNG"),
        "with-head.svg": (b"<?xml version='1.0'?>\n<!-- made by x -->\n<svg/>", "vector drawing .*SVG"),
        "script.eps": (encoded(Image.new("RGB", (2, 2)), "EPS"), "vector drawing .*EPS"),
        "paper.pdf": (b"%PDF-1.7\n", "vector drawing or a document .*PDF"),
        "photo.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pip install pillow-heif"),
        "photo.jxl": (b"\xff\x0a" + bytes(20), "pip install pillow-jxl-plugin"),
        "box.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n", "pip install pillow-jxl-plugin"),
        "photo.cr2": (b"II*\0\x10\0\0\0CR\x02\0", "raw photograph"),
        "photo.cr3": (b"\0\0\0\x18ftypcrx ", "raw photograph"),
        "photo.dng": (encoded(FIRST, "TIFF", tiffinfo={50706: b"\1\4\0\0"}), "raw photograph"),
        "photo.nef": (encoded(FIRST, "TIFF", tiffinfo={254: 1}), "raw photograph"),
        "layers.psd": (b"8BPS\0\1", "PSD"),
        "light.exr": (b"\x76\x2f\x31\x01", "OpenEXR"),
        "light.hdr": (b"#?RADIANCE\n", "Radiance"),
        "scan.dcm": (bytes(128) + b"DICM", "DICOM"),
        "film.mp4": (b"\0\0\0\x18ftypmp42", "is a video and no image"),
        "all.zip": (b"PK\x03\x04" + bytes(40), "is an archive and no image"),
        "targa.tga": (encoded(Image.new("RGB", (2, 2)), "TGA"), "no image of a known format"),
        "huge.png": (png(50_000, 50_000, 8, 2, [b""]), "pixels"),
        "long.png": (png(1, 70_000, 8, 2, [b""]), "1 × 70000"),
        "wide.png": (png(2**31 - 1, 2**31 - 1, 8, 2, [b""]), "pixels"),
    }
    for name, (content, message) in cases.items():
        path = file_of(tmp_path, content, name)
        with pytest.raises(ImageError, match=message) as caught:
            load_image(path)
        assert str(caught.value).startswith(f"{path}: ")
    os.mkfifo(tmp_path / "pipe")
    for path, message in {
        tmp_path: "folder",
        tmp_path / "missing.png": "no such file",
        tmp_path / "text.png" / "below": "no such file",
        tmp_path / "pipe": "not a regular file",
        Path("/dev/zero"): "not a regular file",
        "nul\0byte": "no such file",
        "x" * 5000: "no such file",
        "": "no such file",
        "HTTPS://example.org/cat.png": "is a URL; download it first",
        Path("s3://bucket/cat.png"): "is a URL; download it first",
    }.items():
        with pytest.raises(ImageError, match=message):
            load_image(path)


def test_no_format_is_called_known_that_cannot_be_read(tmp_path):
    with pytest.raises(ImageError) as caught:
        load_image(file_of(tmp_path, b"this is not an image"))
    told = str(caught.value).partition("(")[2].partition(")")[0].split(", ")
    assert "JPEG" in told
    assert set(told) <= set(Image.OPEN)
    assert ("HEIF" in told) == ("HEIF" in Image.OPEN)


def test_a_plugin_that_is_installed_is_used(tmp_path, monkeypatch):
    """A stand-in for pillow-heif, whose images are all of one red."""
    for name in ("OPEN", "ID", "MIME", "EXTENSION"):
        registry = getattr(Image, name)
        monkeypatch.setattr(Image, name, registry.copy())
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image, ImageFile\n"
        "class Heif(ImageFile.ImageFile):\n"
        "    format = 'HEIF'\n"
        "    def _open(self):\n"
        "        self._mode, self._size, self.tile = 'RGB', (2, 2), []\n"
        "        self.im = Image.new('RGB', (2, 2), (200, 0, 0)).im\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', Heif, lambda head: head[4:8] == b'ftyp')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = file_of(tmp_path, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a.heic")
    try:
        assert pixels(path).tolist() == [[[200, 0, 0]] * 2] * 2
        assert pixels(path.read_bytes()).tolist() == [[[200, 0, 0]] * 2] * 2
    finally:
        sys.modules.pop("pillow_heif", None)


def test_a_size_that_pillow_only_warns_of_is_refused_undecoded(tmp_path):
    content = png(10_000, 10_000, 8, 2, [b""])  # with its one empty row it is truncated, too, were it decoded
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(content))
    with pytest.raises(ImageError, match="10000 × 10000"):
        load_image(file_of(tmp_path, content))
    assert images.MAX_PIXELS == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_no_fault_of_the_image_passes(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(error):
        load_image(file_of(tmp_path, SAMPLES["PNG"]))


# Damage


def loaded(path, content):
    path.write_bytes(content)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(images, "MAX_PIXELS", 10_000)  # damaged headers promise gigabytes, which take their time
            picture = load_image(path)
    except ImageError:
        return None
    assert picture.image.mode == "RGB"
    return picture.key


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", SAMPLES)
def test_a_file_cut_at_any_byte_is_the_whole_picture_or_an_image_error(tmp_path, format):
    content = SAMPLES[format]
    *cut, whole = [loaded(tmp_path / "cut", content[:end]) for end in range(len(content) + 1)]
    assert whole is not None
    assert cut[: len(content) // 4] == [None] * (len(content) // 4)
    if format != "JPEG2000":  # OpenJPEG makes a black picture of a file that ends right before its first tile
        assert set(cut) <= {None, whole}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", SAMPLES)
def test_a_file_with_a_changed_byte_is_a_picture_or_an_image_error(tmp_path, format):
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(SAMPLES[format])
        damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
        loaded(tmp_path / "flipped", damaged)


@pytest.mark.filterwarnings("ignore")
@given(st.binary(max_size=300), st.sampled_from(sorted(SAMPLES)), st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_random_bytes_are_an_image_error(tmp_path_factory, content, format, kept):
    path = tmp_path_factory.getbasetemp() / "random"
    assert loaded(path, content) is None
    loaded(path, SAMPLES[format][:kept] + content)


# Folders


def test_find_images_lists_folders_sorted_without_hidden_files(tmp_path):
    visible = ["a/2.png", "a/10.jpg", "a/deeper/x", "b.txt", "c/cut.png", "z.webp"]
    clutter = ["a/Thumbs.db", "c/desktop.ini", "__MACOSX/a/._2.png", "c/@eaDir/z.png"]
    for name in [*visible, ".hidden.png", "a/.DS_Store", ".git/object", "c/.thumbs/x.png", *clutter]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe")
    expected = sorted(tmp_path / name for name in visible)
    assert find_images([tmp_path]) == expected
    assert find_images(str(tmp_path)) == find_images(tmp_path) == expected
    hidden = tmp_path / ".hidden.png"
    assert find_images([hidden, str(tmp_path / "c"), tmp_path / "z.webp"]) == [
        hidden,
        tmp_path / "c/cut.png",
        tmp_path / "z.webp",
    ]
    assert find_images([]) == []


def test_find_images_follows_links_but_not_in_circles(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "real" / "x.png").touch()
    (tmp_path / "real" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "data" / "self").symlink_to(".")
    (tmp_path / "data" / "loop").symlink_to("loop")
    (tmp_path / "data" / "gone.png").symlink_to("nowhere")
    found = find_images([tmp_path / "data"])
    assert [str(p.relative_to(tmp_path / "data")) for p in found] == ["gone.png", "linked/x.png", "loop"]
    for dangling in (found[0], found[2]):
        with pytest.raises(ImageError, match="no such file"):
            load_image(dangling)


def test_find_images_refuses(tmp_path, monkeypatch):
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    (tmp_path / "empty" / ".hidden").touch()
    for path, message in {
        tmp_path / "empty": "holds no files",
        tmp_path / "missing": "no such file",
        "http://example.org/a.png": "is a URL; download it first",
        "s3://bucket/a": "is a URL",
    }.items():
        with pytest.raises(ImageError, match=message):
            find_images([path])

    def denied(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", denied)  # the tests may run as root, whom nothing is denied
    with pytest.raises(ImageError, match="Permission denied"):
        find_images([tmp_path])

    (tmp_path / "open" / "closed").mkdir(parents=True)
    (tmp_path / "open" / "a.png").touch()
    monkeypatch.setattr(os, "listdir", lambda f: denied(f) if Path(f).name == "closed" else listdir(f))
    assert find_images([tmp_path / "open"]) == [tmp_path / "open" / "a.png", tmp_path / "open" / "closed"]
    with pytest.raises(ImageError, match="closed: the folder cannot be read: Permission denied"):
        load_image(tmp_path / "open" / "closed")


# Preprocessing


def levels(tensor):
    """Back to 0..255, as (H, W, 3)."""
    return ((tensor.double() + 1) * 127.5).permute(1, 2, 0).numpy()


@given(rgb_arrays.filter(lambda a: a.shape[0] == a.shape[1]), st.sampled_from(["center", "adm"]))
@few
def test_an_image_of_the_right_size_keeps_its_pixels(array, crop):
    tensor = preprocess(Image.fromarray(array), array.shape[0], crop=crop)
    assert tensor.is_contiguous()
    expected = (torch.from_numpy(array).permute(2, 0, 1).float() / 255 - 0.5) / 0.5  # torchvision, to the last bit
    assert torch.equal(tensor, expected)


@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(1, 64),
    st.sampled_from(["center", "adm"]),
    st.sampled_from(["bicubic", "bilinear", "lanczos", "nearest"]),
)
@settings(max_examples=150, deadline=None)
def test_shape_range_and_centre_for_all_sizes(width, height, size, crop, interpolation):
    # Red grows from left to right, green from top to bottom: the centre of a crop has the mean of both.
    red = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    green = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width))
    picture = load_image(np.stack([red, green, np.ones_like(red)], axis=2))
    tensor = preprocess(picture.image, size, crop=crop, interpolation=interpolation)
    assert tensor.shape == (3, size, size)
    assert tensor.dtype == torch.float32
    assert tensor.min() >= -1
    assert (tensor[2] == 1).all()
    short = min(width, height)
    one_pixel = max(1 / short, 1 / size) if interpolation == "nearest" else 1 / size
    for channel, length in enumerate((width, height)):
        step = one_pixel * short / length  # one pixel of the crop, as a part of the whole edge
        assert abs(float(tensor[channel].double().mean()) / 2) <= step + 1 / 255


def reference_resize(array, height, width):
    """Torch's antialiased bicubic filter, which was written to agree with Pillow's."""
    batch = torch.from_numpy(array).permute(2, 0, 1)[None].double()
    resized = torch.nn.functional.interpolate(batch, (height, width), mode="bicubic", antialias=True)
    return resized[0].clamp(0, 255).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("width", "height", "size", "resized", "left_top"),
    [  # worked out by hand from torchvision's formulas
        (30, 50, 16, (16, 26), (0, 5)),  # 26.67 is cut, not rounded
        (50, 30, 16, (26, 16), (5, 0)),
        (16, 17, 16, (16, 17), (0, 0)),  # halves go to the even offset
        (16, 19, 16, (16, 19), (0, 2)),
        (21, 16, 16, (21, 16), (2, 0)),
        (16, 23, 16, (16, 23), (0, 4)),
        (7, 9, 16, (16, 20), (0, 2)),
        (90, 64, 16, (22, 16), (3, 0)),
    ],
)
def test_center_is_torchvisions_resize_and_crop(width, height, size, resized, left_top):
    array = np.random.default_rng(1).integers(64, 192, (height, width, 3), np.uint8)  # no overshoot
    left, top = left_top
    expected = reference_resize(array, *resized[::-1])[top : top + size, left : left + size]
    result = levels(preprocess(Image.fromarray(array), size))
    assert np.abs(result - expected).max() <= 1.2  # Pillow rounds after rows and after columns


@pytest.mark.parametrize(
    ("width", "height", "halved", "resized", "left_top"),
    [  # worked out by hand from guided-diffusion's center_crop_arr, for size 16
        (64, 64, 2, (16, 16), (0, 0)),
        (68, 76, 2, (17, 19), None),
        (16, 17, 0, (16, 17), (0, 0)),
        (16, 19, 0, (16, 19), (0, 1)),  # halves go down
        (21, 16, 0, (21, 16), (2, 0)),
        (31, 50, 0, (16, 26), (0, 5)),  # 25.8 is rounded
        (40, 60, 1, (16, 24), (0, 4)),
    ],
)
def test_adm_halves_then_resizes(width, height, halved, resized, left_top):
    array = np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)
    expected = array.astype(float)
    for _ in range(halved):
        h, w = expected.shape[0] // 2, expected.shape[1] // 2
        expected = expected.reshape(h, 2, w, 2, 3).mean(axis=(1, 3))
    if left_top is None:  # 17 × 19 to 16 × round(17.88)
        resized, left_top = (16, 18), (0, 1)
    expected = reference_resize(expected, *resized[::-1])
    left, top = left_top
    result = levels(preprocess(Image.fromarray(array), 16, crop="adm"))
    assert np.abs(result - expected[top : top + 16, left : left + 16]).max() <= 2.7  # it rounds after every step


def test_interpolation_is_used():
    image = load_image(np.random.default_rng(3).random((9, 9, 3))).image
    results = [preprocess(image, 16, interpolation=i) for i in ("bicubic", "bilinear", "lanczos", "nearest")]
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])
    nearest = np.asarray(image)[(np.arange(16) * 9 + 4) // 16][:, (np.arange(16) * 9 + 4) // 16]
    np.testing.assert_allclose(levels(results[3]), nearest, atol=1e-4)


def test_preprocess_refuses():
    image = Image.new("RGB", (4, 4))
    for wrong in ({"size": 0}, {"size": 4, "crop": "centre"}, {"size": 4, "interpolation": "BOX"}):
        with pytest.raises(InputError, match="cannot preprocess"):
            preprocess(image, **wrong)
    with pytest.raises(ImageError, match="mode L"):
        preprocess(image.convert("L"), 4)
    for crop in ("center", "adm"):
        with pytest.raises(ImageError, match="too narrow for size 256"):
            preprocess(Image.new("RGB", (1, 100_000)), 256, crop=crop)
