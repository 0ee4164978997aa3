"""Image files and labelled data sets: folders, Parquet files and tar shards of small grey images."""

import gzip
import io
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from diffusion_classifier.data.images import load_image

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
AMBIGUOUS_WORDS = "01|1|007|true|True|None|NA|null|nan|1.0|2024-01-02|1e3|-0| a|a ".split("|")  # noqa: SIM905
"""Strings that type inference would change."""
IDX_TYPES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}
PIXELS, LABELS = np.arange(24, dtype=np.uint8).reshape(3, 2, 4), np.array([1, 0, 1], np.uint8)


def png(grey):
    file = io.BytesIO()
    Image.new("L", (4, 4), grey).save(file, "PNG")
    return file.getvalue()


def greys(source):
    """Return the grey value of each image, decoded as the classifier decodes it."""
    return [load_image(source.read(i)).image.getpixel((0, 0))[0] for i in range(len(source))]


def folder_of(root, *names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(i))
    return root


def table(path, labels, content=png, **columns):
    """Write a Parquet file of images with the grey values 0, 1, 2 …"""
    labels = labels if isinstance(labels, pa.Array) else pa.array(labels)
    images = pa.array([{"bytes": content(i), "path": None} for i in range(len(labels))], IMAGE_TYPE)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": labels, **columns}), path)
    return str(path)


def add_member(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def shard(path, members, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            add_member(tar, name, content if isinstance(content, bytes) else content.encode())
    return str(path)


def samples(*labels, suffix="png"):
    return [m for i, label in enumerate(labels) for m in ((f"{i}.{suffix}", png(i)), (f"{i}.cls", label))]


def webdataset(folder, labels=(1, 0, 1), split="test"):
    """Write two shards, and the metadata files that CLIP benchmark stores beside them."""
    (folder / split).mkdir(parents=True)
    for shard, rows in enumerate((range(2), range(2, len(labels)))):
        with tarfile.open(folder / split / f"{shard}.tar", "w") as tar:
            for i in rows:
                add_member(tar, f"s{i:07d}.cls", str(labels[i]).encode())
                add_member(tar, f"s{i:07d}.webp", png(10 * i + 10))
    (folder / "classnames.txt").write_text("cat\ndog\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na {c}, blurred.\n")
    return folder


def faulty_images():
    """Return a map from file name to the content of an image that makes Pillow warn or log, and the expected record.

    Only the first two images are accepted.
    """
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "a description that is cut off"
    files = {
        "exif.jpg": (saved(image, "JPEG", exif=exif.tobytes()[:-20]), "Truncated File Read"),
        "palette.png": (saved(image.quantize(8), "PNG", transparency=bytes(range(8))), "transparent parts on white"),
        "cut.tif": (saved(image, "TIFF", compression="tiff_lzw")[:600], "Corrupt EXIF data. Expecting to read 2 bytes"),
        "bomb.png": (saved(Image.new("1", (12_000, 9_000)), "PNG"), "is 12000 × 9000; expected 1 to 89,478,485 pixels"),
    }
    tiff = bytearray(saved(image, "TIFF"))
    place = tiff.index(struct.pack("<HHIH", 277, 3, 1, 3))  # samples per pixel
    tiff[place + 8 : place + 10] = struct.pack("<H", 99)
    return files | {"samples.tif": (bytes(tiff), "More samples per pixel than can be decoded: 99")}


def saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def idx(array, dtype="u1"):
    header = struct.pack(f">4B{array.ndim}I", 0, 0, IDX_TYPES[dtype], array.ndim, *array.shape)
    return header + array.astype(dtype).tobytes()


def idx_folder(folder, name="t10k-{}-ubyte", pixels=PIXELS, labels=LABELS, pixel_type="u1", label_type="u1"):
    folder.mkdir(exist_ok=True)
    for part, content in (("images-idx3", idx(pixels, pixel_type)), ("labels-idx1", idx(labels, label_type))):
        path = folder / name.format(part)
        path.write_bytes(gzip.compress(content) if path.suffix.lower() == ".gz" else content)
    return folder
