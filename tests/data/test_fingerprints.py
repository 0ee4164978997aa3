"""Fingerprints of data sets are stored in runs: the same data must have the same one in every version.

The values were computed by the first version that stored them in this form.
"""

import pytest
from caption_files import ROWS, winoground, write_rows
from image_files import folder_of, idx_folder, png, table, webdataset

from diffusion_classifier.data.captioned import open_captioned, open_winoground
from diffusion_classifier.data.corruptions import Corruption, corrupted
from diffusion_classifier.data.images import load_image
from diffusion_classifier.data.labelled import open_labelled
from diffusion_classifier.tasks import CAPTION_TASKS, open_task


def numbered(folder):
    folder_of(folder, "test/class 10/a.png", "test/class 9/b.png", "test/class 9/deeper/c.png", "train/class 9/d.png")
    return str(folder)


def csv(folder):
    folder_of(folder, "a.png", "b.png", "c.png")
    (folder / "x.csv").write_text("image,label\nc.png,007\na.png,cat\nb.png,Cat\n")
    return str(folder / "x.csv")


def idx(folder):
    return str(idx_folder(folder))


LABELLED = {
    "folder": (numbered, "b5931e406269161d", {}),
    "csv": (csv, "2213251b6ad4bc8b", {}),
    "idx": (idx, "f2579dfe4995dac1", {}),
    "idx-named": (idx, "451db9496814e521", {"class_names": ["shirt", "bag", "boot"]}),
    "parquet": (lambda f: table(f / "x.parquet", [3, 0, 3]), "fb2937988163fa01", {}),
    "shards": (lambda f: str(webdataset(f)), "fe9d15a4fc55482d", {}),
    "corrupted": (lambda f: str(webdataset(f)), "ac4d305209cee011", {"shift": "jpeg:3"}),
}


@pytest.mark.parametrize("kind", LABELLED)
def test_of_labelled_images(kind, tmp_path):
    make, expected, options = LABELLED[kind]
    options = dict(options)
    shift = options.pop("shift", None)
    source = open_labelled(make(tmp_path / "d"), **options)
    assert (corrupted(source, Corruption.parse(shift)) if shift else source).fingerprint()[:16] == expected


@pytest.mark.parametrize(
    ("task", "expected"), [("fashion-sample", "702dfc102f0ce226"), ("scenes-nouns", "90e29bf02f07f445")]
)
def test_of_tasks(task, expected):
    assert open_task(task)[1].fingerprint()[:16] == expected


@pytest.mark.parametrize(
    ("task", "expected"), [("scenes-binding", "9714a16f9b2630e8"), ("scenes-spatial", "bcafbf16043a85f7")]
)
def test_of_tasks_with_captions(task, expected):
    assert CAPTION_TASKS[task].open().fingerprint()[:16] == expected


def test_of_captions(tmp_path):
    pairs = open_winoground(data=str(winoground(tmp_path / "w.parquet")))
    assert pairs.fingerprint()[:16] == "ea356d8671a231a1"
    folder_of(tmp_path / "images", "0.png", "1.png", "2.png")
    captions = open_captioned(data=write_rows(tmp_path / "d.json", ROWS), tag_column="kind")
    assert captions.fingerprint()[:16] == "e6554385bc0baee2"


def test_of_an_image():
    """On which the noise of its draws depends."""
    assert load_image(png(100)).key == 8955469784646713159
