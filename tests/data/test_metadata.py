"""Folders of images with a metadata.csv, metadata.jsonl or metadata.parquet."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import folder_of, greys

from diffusion_classifier.data.labelled import open_labelled
from diffusion_classifier.data.texts import is_text_source, open_texts
from diffusion_classifier.errors import InputError


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        file.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n")
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)


def rows(*names, label="label"):
    return [{"file_name": name, label: f"0{i}"} for i, name in enumerate(names)]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_labels_are_as_they_are_written(tmp_path, suffix):
    folder = folder_of(tmp_path / "d", "a.png", "in/b.png", "c.png")
    write(folder / f"metadata.{suffix}", rows("c.png", "a.png", "in/b.png"))
    source = open_labelled(str(folder))
    assert source.ids == ("a.png", "c.png", "in/b.png")
    assert [source.label(i) for i in range(3)] == ["01", "00", "02"]
    assert greys(source) == [0, 2, 1]


def test_captions(tmp_path):
    folder = folder_of(tmp_path / "d", "a.png", "b.png")
    write(folder / "metadata.csv", [{"file_name": "b.png", "text": "NA"}, {"file_name": "a.png", "text": "12"}])
    assert is_text_source(str(folder))
    assert open_texts(str(folder)).captions == ("12", "NA")
    write(folder / "metadata.csv", [{"file_name": "b.png", "text": ""}, {"file_name": "a.png", "text": "12"}])
    with pytest.raises(InputError, match="has no caption: column 'text' holds None"):
        open_texts(str(folder))
    write(folder / "metadata.jsonl", [{"file_name": "b.png", "text": 3}, {"file_name": "a.png", "text": "12"}])
    (folder / "metadata.csv").unlink()
    with pytest.raises(InputError, match="has no text in column 'text', but 3"):
        open_texts(str(folder))


def test_images_that_are_not_listed(tmp_path):
    folder = folder_of(tmp_path / "d", "a.png", "b.png", "c.jpg", "in/d.png")
    write(folder / "metadata.csv", rows("a.png", "c.jpg"))
    with pytest.raises(InputError, match=r"2 images in .* are not listed in metadata.csv, such as b.png; use"):
        open_labelled(str(folder))
    source = open_labelled(str(folder), allow_incomplete=True)
    assert source.ids == ("a.png", "c.jpg")
    assert any("2 images in" in note and "not listed" in note for note in source.notes)


def test_what_is_an_image_is_decided_by_content(tmp_path):
    folder = folder_of(tmp_path / "d", "a.png", "b.png")
    (folder / "paper.pdf").write_bytes(b"%PDF-1.4")
    write(folder / "metadata.csv", rows("a.png", "b.png"))
    assert open_labelled(str(folder)).notes == ("1 file is no image and was left out: paper.pdf",)
    (folder / "b.png").rename(folder / "b.v1.0")
    write(folder / "metadata.csv", rows("a.png"))
    with pytest.raises(InputError, match=r"1 images in .* are not listed in metadata.csv, such as b.v1.0"):
        open_labelled(str(folder))


@pytest.mark.parametrize("name", ["Metadata.CSV", "METADATA.jsonl", "metadata.PARQUET"])
def test_capitals_in_the_name_of_the_list(tmp_path, name):
    folder = folder_of(tmp_path / "d", "a.png", "b.png")
    write(folder / name.lower(), rows("b.png", "a.png"))
    (folder / name.lower()).rename(folder / name)
    source = open_labelled(str(folder))
    assert {source.ids[i]: source.label(i) for i in range(2)} == {"a.png": "01", "b.png": "00"}


def test_a_list_for_each_split(tmp_path):
    folder = folder_of(tmp_path / "d", "train/a.png", "test/a.png", "test/b.png")
    write(folder / "train" / "metadata.csv", rows("a.png"))
    write(folder / "test" / "metadata.csv", rows("a.png", "b.png"))
    assert open_labelled(str(folder)).ids == ("test/a.png", "test/b.png")
    assert open_labelled(str(folder), split="train").ids == ("train/a.png",)


def test_one_list_of_several_splits(tmp_path):
    folder = folder_of(tmp_path / "d", "train/a.png", "test/a.png", "test/b.png")
    write(folder / "metadata.csv", rows("train/a.png", "test/a.png", "test/b.png"))
    assert open_labelled(str(folder)).ids == ("test/a.png", "test/b.png")
    assert open_labelled(str(folder), split="train").ids == ("train/a.png",)
    with pytest.raises(InputError, match="has no split 'val'; it has test, train"):
        open_labelled(str(folder), split="val")
    assert open_labelled(str(folder), split="test").ids == ("test/a.png", "test/b.png")


def test_a_split_that_is_not_there(tmp_path):
    folder = folder_of(tmp_path / "d", "a.png", "b.png")
    write(folder / "metadata.csv", rows("a.png", "b.png"))
    assert len(open_labelled(str(folder), split="train")) == 2
    with pytest.raises(InputError, match="has no split 'test'"):
        open_labelled(str(folder), split="test")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (rows("a.png", "b.png", "a.png"), "lists a.png, which is listed twice"),
        ([{"file_name": "", "label": "x"}], "has a row without file_name"),
        ([{"image": "a.png", "label": "x"}], "has a row without file_name"),
    ],
)
def test_a_list_that_cannot_be_used(tmp_path, found, message):
    folder = folder_of(tmp_path / "d", "a.png", "b.png")
    write(folder / "metadata.csv", found)
    with pytest.raises(InputError, match=message):
        open_labelled(str(folder))


def test_a_table_beside_images_that_no_class_is_known_of_is_named(tmp_path):
    folder = folder_of(tmp_path / "d", "a.png", "b.png")
    write(folder / "labels.csv", [{"image": "a.png", "label": "cat"}, {"image": "b.png", "label": "dog"}])
    with pytest.raises(InputError, match=r"say which they may be of, --class-names; 1 file .* left out: labels.csv"):
        open_labelled(str(folder))
