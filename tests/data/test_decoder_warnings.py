"""Warnings and log messages of Pillow are in the record of their image, and nowhere else."""

import io
import json
import logging
import threading
import warnings

import numpy as np
import pytest
from image_files import faulty_images, saved, shard, table
from PIL import Image

from diffusion_classifier.data.captioned import open_captioned
from diffusion_classifier.data.corruptions import Corruption, corrupted
from diffusion_classifier.data.decoder_warnings import collect_warnings
from diffusion_classifier.data.formats import is_image
from diffusion_classifier.data.images import ImageError, load_image
from diffusion_classifier.data.labelled import open_labelled
from diffusion_classifier.training.images import load_labelled_images

FAULTY = faulty_images()
EXIF, NOTE = FAULTY["exif.jpg"][0], "warning: Truncated File Read"


@pytest.fixture(autouse=True)
def printed(caplog):
    """Collect what would be printed, and assert at the end that nothing is left."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found
    assert [str(warning.message) for warning in found] == []
    assert caplog.records == []


def record(source, name=None):
    """All that is said of an image."""
    try:
        return "; ".join(load_image(source, name).notes)
    except ImageError as e:
        return str(e)


@pytest.mark.parametrize("name", FAULTY)
def test_of_a_file_and_of_its_content(name, tmp_path):
    content, said = FAULTY[name]
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, content, tmp_path / name):
        assert record(source).count(said) == 1


@pytest.mark.parametrize("name", ["exif.jpg", "palette.png"])
def test_of_an_image_that_the_user_opened(name, printed):
    content, said = FAULTY[name]
    image = Image.open(io.BytesIO(content))
    printed.clear()  # nothing of the package was called yet
    assert said in record(image)


def test_after_it_was_printed_for_another_image(printed):
    warnings.simplefilter("default")
    for _ in range(2):
        Image.open(io.BytesIO(EXIF)).getexif()
    assert len(printed) == 1
    printed.clear()
    assert [load_image(EXIF).notes for _ in range(3)] == [(NOTE,)] * 3


def test_where_warnings_are_errors():
    warnings.simplefilter("error")
    assert load_image(EXIF).notes == (NOTE,)
    warnings.simplefilter("error")  # again before the filter of the package
    assert load_image(EXIF).notes == (NOTE,)


def test_warnings_and_logs_of_other_threads_go_their_way(printed, caplog):
    def work():
        warnings.warn("of another thread", stacklevel=1)
        logging.getLogger("PIL.TiffImagePlugin").error("logged by another thread")

    with collect_warnings() as found:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        warnings.warn("of the image.", stacklevel=1)
        logging.getLogger("PIL.TiffImagePlugin").error("logged for %s", "the image")
    assert found == ["of the image", "logged for the image"]
    assert [str(warning.message) for warning in printed] == ["of another thread"]
    assert [entry.message for entry in caplog.records] == ["logged by another thread"]
    warnings.warn("afterwards", stacklevel=1)
    assert str(printed[-1].message) == "afterwards"
    printed.clear()
    caplog.clear()


def test_search_for_images_prints_nothing(tmp_path):
    for name, (content, _) in FAULTY.items():
        (tmp_path / name).with_suffix("").write_bytes(content)
        is_image((tmp_path / name).with_suffix(""))


def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / f"{name}.jpg").write_bytes(EXIF)
    return str(tmp_path / "d")


def rows_of_files(tmp_path, name, text):
    folder(tmp_path)
    (tmp_path / "d" / name).write_text(text)
    return str(tmp_path / "d" / name)


SOURCES = {
    "folder": folder,
    "csv": lambda p: rows_of_files(p, "x.csv", "image,label\na/a.jpg,a\nb/b.jpg,b\n"),
    "jsonl": lambda p: rows_of_files(
        p, "x.jsonl", "".join(json.dumps({"image": f"{n}/{n}.jpg", "label": n}) + "\n" for n in "ab")
    ),
    "metadata": lambda p: rows_of_files(p, "metadata.csv", "file_name,label\na/a.jpg,a\nb/b.jpg,b\n").rpartition("/")[
        0
    ],
    "parquet": lambda p: table(p / "x.parquet", ["a", "b"], content=lambda _: EXIF),
    "tar": lambda p: shard(p / "0.tar", [m for n in "ab" for m in ((f"{n}.jpg", EXIF), (f"{n}.cls", n))]),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_of_data_sets(kind, tmp_path):
    path = SOURCES[kind](tmp_path)
    source = open_labelled(path)
    assert [load_image(source.read(i)).notes for i in range(len(source))] == [(NOTE,)] * 2
    changed = corrupted(source, Corruption("jpeg", 1))
    assert [load_image(changed.read(i)).notes for i in range(2)] == [(NOTE,)] * 2
    note = load_labelled_images(path, size=8).notes[-1]
    assert note.startswith("Pillow warned of 2 of 2 images, such as ")
    assert note.endswith(": Truncated File Read")


def test_of_images_that_are_cropped_to_a_box(tmp_path):
    (tmp_path / "a.jpg").write_bytes(EXIF)
    row = {"image_path": "a.jpg", "true_caption": "a", "false_caption": "b"}
    row |= {"bbox_x": 2, "bbox_y": 2, "bbox_w": 4, "bbox_h": 5}
    (tmp_path / "x.json").write_text(json.dumps([row]))
    picture = load_image(open_captioned(data=str(tmp_path / "x.json")).read(0), "a")
    assert (picture.image.size, picture.notes, picture.name) == ((4, 5), (NOTE,), "a")


def test_a_picture_keeps_its_notes_and_its_name():
    picture = load_image(saved(Image.fromarray(np.full((4, 4), 300, np.uint16)), "PNG"), "x.png")
    assert picture.notes == ("16 bit reduced to 8",)
    again = load_image(picture)
    assert (again.notes, again.name, again.key) == (picture.notes, "x.png", picture.key)
    assert load_image(picture, "y").name == "y"
