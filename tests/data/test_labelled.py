import os
import struct

import datasets
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import EntryNotFoundError
from image_files import LABELS, PIXELS, folder_of, greys, idx_folder, png, webdataset

from diffusion_classifier.data.labelled import open_labelled, renamed
from diffusion_classifier.data.texts import open_texts
from diffusion_classifier.errors import InputError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_webdataset_shards_with_names_and_templates_beside_them(tmp_path):
    source = open_labelled(str(webdataset(tmp_path / "d")))
    assert source.class_names == ("cat", "dog")
    assert source.labels == (1, 0, 1)
    assert source.ids == ("s0000000", "s0000001", "s0000002")
    assert source.templates == ("a photo of a {}.", "a {}, blurred.")
    assert greys(source) == [10, 20, 30]


def test_a_single_shard(tmp_path):
    source = open_labelled(str(webdataset(tmp_path / "d") / "test" / "0.tar"))
    assert (source.class_names, source.labels) == (("cat", "dog"), (1, 0))


def test_labels_without_a_name(tmp_path):
    with pytest.raises(InputError, match=r"d\[2\] \(s0000002\) has the label 2, and there are names for 2 classes"):
        open_labelled(str(webdataset(tmp_path / "d", (1, 0, 2))))


def test_names_and_templates_of_a_data_set_on_the_hub(tmp_path, monkeypatch):
    local = webdataset(tmp_path / "d")
    load = datasets.load_dataset

    def download(source, name, repo_type):
        assert (source, repo_type) == ("some/pets", "dataset")
        if not (local / name).exists():
            raise EntryNotFoundError("none")
        return str(local / name)

    monkeypatch.setattr(datasets, "load_dataset", lambda _, split: load(str(local), split=split))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert open_labelled("some/pets", split="test").class_names == ("cat", "dog")
    (local / "classnames.txt").unlink()
    source = open_labelled("some/pets", split="test")
    assert (source.class_names, source.labels, len(source.templates)) == (("0", "1"), (1, 0, 1), 2)


def test_an_image_folder(tmp_path):
    for name, grey in (("dog/b", 40), ("cat/a", 30), ("dog/a", 50)):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / f"{name}.png").write_bytes(png(grey))
    source = open_labelled(str(tmp_path / "d"))
    assert source.class_names == ("cat", "dog")
    assert dict(zip(source.ids, source.labels, strict=True)) == {"cat/a.png": 0, "dog/a.png": 1, "dog/b.png": 1}
    assert dict(zip(source.ids, greys(source), strict=True)) == {"cat/a.png": 30, "dog/a.png": 50, "dog/b.png": 40}
    (tmp_path / "d" / "dog" / "a.png").write_bytes(b"broken")  # said when it is read, not before
    open_labelled(str(tmp_path / "d"))


def test_a_folder_is_no_split_for_the_sake_of_a_word_in_a_name(tmp_path):
    names = ("beach/my-test.png", "kitchen/dev_1.png", "train_station/a.png", "val/a.png")
    source = open_labelled(str(folder_of(tmp_path / "d", *names)))
    assert source.class_names == ("beach", "kitchen", "train_station", "val")
    assert source.ids == names
    assert open_labelled(str(tmp_path / "d"), split="train").ids == names
    with pytest.raises(InputError, match="has no split 'test': its images are in no folder of that name"):
        open_labelled(str(tmp_path / "d"), split="test")


def test_folders_of_splits(tmp_path):
    folder = str(folder_of(tmp_path / "d", "train/cat/a.png", "train/dog/a.png", "val/cat/b.png", "val/dog/b.png"))
    assert open_labelled(folder, split="train").ids == ("train/cat/a.png", "train/dog/a.png")
    source = open_labelled(folder, split="val")
    assert (source.ids, source.class_names) == (("val/cat/b.png", "val/dog/b.png"), ("cat", "dog"))
    with pytest.raises(InputError, match="has no split 'test'; it has train, validation"):
        open_labelled(folder)


def test_links_are_followed_and_every_kind_of_image_is_there(tmp_path):
    folder_of(tmp_path / "elsewhere", "Sneaker/a.png")
    folder = folder_of(tmp_path / "d", "Bag/a.avif", "Bag/b", "Bag/c.JPG", "Bag/.x.png")
    for name in ("Bag/notes.txt", "LICENSE", "Bag/Thumbs.db"):
        (folder / name).write_text("BM, or P5 10 10, is no image")
    (folder / "Sneaker").symlink_to(tmp_path / "elsewhere" / "Sneaker")
    source = open_labelled(str(folder))
    assert dict(zip(source.ids, map(source.label, range(4)), strict=True)) == {
        "Bag/a.avif": "Bag", "Bag/b": "Bag", "Bag/c.JPG": "Bag", "Sneaker/a.png": "Sneaker",
    }  # fmt: skip
    assert greys(source) == [0, 1, 2, 0]
    assert source.notes == ("2 files are no images and were left out: LICENSE, Bag/notes.txt",)
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "notes.txt").write_text("none")
    with pytest.raises(InputError, match=r"texts holds no images, but a/notes\.txt$"):
        open_labelled(str(tmp_path / "texts"))


def test_a_file_name_of_other_bytes(tmp_path):
    folder = folder_of(tmp_path / "d", "cat/a.png", "dog/b.png")
    (folder / "cat" / "a.png").rename(folder / "cat" / os.fsdecode(b"\xe9.png"))
    with pytest.raises(InputError, match=r"a name in .* is not UTF-8, at .*cat/.udce9"):
        open_labelled(str(folder))


def test_captions_of_images_whose_names_hold_the_word_of_a_split(tmp_path):
    folder = folder_of(tmp_path / "d", "my-test.png", "train_1.png")
    (folder / "metadata.csv").write_text("file_name,text\nmy-test.png,one\ntrain_1.png,two\n")
    assert sorted(open_texts(str(folder)).captions) == ["one", "two"]


@pytest.mark.parametrize("suffix", ["csv", "CSV", "Csv"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_csv_file_of_paths(tmp_path, relative, suffix):
    (tmp_path / "d" / "i").mkdir(parents=True)
    lines = ["path,class"]
    for i, name in enumerate(("owl", "ant", "owl")):
        (tmp_path / "d" / "i" / f"{i}.png").write_bytes(png(i))
        lines.append(f"{'i' if relative else tmp_path / 'd' / 'i'}/{i}.png,{name}")
    (tmp_path / "d" / f"labels.{suffix}").write_text("\n".join(lines))
    source = open_labelled(str(tmp_path / "d" / f"labels.{suffix}"))
    assert (source.class_names, source.labels) == (("ant", "owl"), (1, 0, 1))
    assert greys(source) == [0, 1, 2]
    assert source.ids[0].endswith("i/0.png")


def test_a_parquet_file_and_splits(tmp_path):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["no", "yes"]))
    (tmp_path / "d").mkdir()
    for split, grey in (("train", 1), ("test", 2)):
        columns = {"image": [{"bytes": png(grey), "path": None}] * 2, "label": [1, 0]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(
            tmp_path / "d" / f"{split}-00000-of-1.parquet"
        )
    assert greys(open_labelled(str(tmp_path / "d"))) == [2, 2]
    assert greys(open_labelled(str(tmp_path / "d"), split="train")) == [1, 1]
    source = open_labelled(str(tmp_path / "d" / "train-00000-of-1.parquet"))
    assert (greys(source), source.class_names, source.ids) == ([1, 1], ("no", "yes"), ("0", "1"))
    with pytest.raises(InputError, match="has no split 'dev'; it has test, train"):
        open_labelled(str(tmp_path / "d"), split="dev")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("t10k-{}-ubyte.gz", "test"), ("t10k-{}-ubyte", "test"), ("test-{}-ubyte", "test"),
        ("T10K-{}-UBYTE.GZ", "test"), ("emnist-letters-test-{}-ubyte.gz", "test"),
        ("emnist-letters-test-{}-ubyte.gz", "emnist-letters-test"), ("train-{}-ubyte", "train"),
        ("qmnist-test10k-{}-ubyte", "test"), ("val-{}-ubyte", "validation"), ("val-{}-ubyte", "val"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dot", [False, True])
def test_idx_files(tmp_path, name, split, dot):
    folder = idx_folder(tmp_path / "d", name)
    if dot:  # as some copies of MNIST have it
        for path in list(folder.iterdir()):
            path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    for wanted in (split, None):
        source = open_labelled(str(folder), split=wanted)
        assert (source.class_names, source.labels, source.ids) == (("0", "1"), (1, 0, 1), ("0", "1", "2"))
        assert np.array_equal(source.read(1), PIXELS[1])
    assert bool(source.notes) == ("t10k" not in name.lower() and "test" not in name)


@pytest.mark.parametrize(("scale", "dtype"), [(1, "u1"), (1, ">i2"), (1, ">i4"), (1 / 255, ">f4"), (1 / 255, ">f8")])
@pytest.mark.parametrize("label_type", ["u1", "i1", ">i2", ">i4"])
def test_idx_files_of_other_types(tmp_path, scale, dtype, label_type):
    pixels = PIXELS * 11
    folder = idx_folder(tmp_path / "d", pixels=pixels * scale, pixel_type=dtype, label_type=label_type)
    source = open_labelled(str(folder))
    assert source.labels == (1, 0, 1)
    assert np.array_equal([source.read(i) for i in range(3)], pixels)


def test_classes_of_idx_files_are_those_of_all_their_splits(tmp_path):
    folder = idx_folder(tmp_path / "d")
    idx_folder(folder, "train-{}-ubyte", labels=np.array([0, 3, 1]))
    source = open_labelled(str(folder))
    assert source.class_names == ("0", "1", "2", "3")
    assert source.notes == ("2 classes have no images and can be predicted all the same: 2, 3",)
    names = ["zero", "one", "two", "three", "four"]
    named = open_labelled(str(folder), class_names=names)
    assert (named.class_names, named.labels) == (tuple(names), (1, 0, 1))
    assert named.notes[0].startswith("2 of the class names have no image")
    assert named.notes[1:] == ("3 classes have no images and can be predicted all the same: two, three, four",)
    assert open_labelled(str(folder), class_names=names[:3]).label(0) == "one"  # of the labels 0, 1 and 3
    with pytest.raises(
        InputError, match=r"2 class names were given for the 3 classes of .* labels are 0 to 3: give one"
    ):
        open_labelled(str(folder), class_names=names[:2])


def test_labels_of_idx_files_that_begin_at_one(tmp_path):
    folder = idx_folder(tmp_path / "d", labels=np.array([1, 2, 3]))
    assert open_labelled(str(folder)).notes == ("1 class has no images and can be predicted all the same: 0",)
    named = open_labelled(str(folder), class_names=["a", "b", "c"])
    assert (named.class_names, named.labels) == (("a", "b", "c"), (0, 1, 2))
    assert named.notes == (f"labels of {folder} are 1, 2, 3 …: label 1 is named 'a'",)


def test_idx_files_that_do_not_fit(tmp_path):
    folder = idx_folder(tmp_path / "d")
    idx_folder(folder, "t10k-{}-ubyte.gz")
    assert len(open_labelled(str(folder))) == 3  # a compressed copy of the same
    idx_folder(folder, "t10k-{}-ubyte.gz", labels=1 - LABELS)
    with pytest.raises(InputError, match=r"labels-idx1-ubyte and .*labels-idx1-ubyte\.gz differ: remove the one"):
        open_labelled(str(folder))
    folder = idx_folder(idx_folder(tmp_path / "e", "emnist-letters-test-{}-ubyte"), "emnist-digits-test-{}-ubyte")
    with pytest.raises(
        InputError, match=r"several sets for 'test': there are emnist-digits-test, .*; name one with --s"
    ):
        open_labelled(str(folder))
    assert len(open_labelled(str(folder), split="emnist-digits-test")) == 3
    with pytest.raises(InputError, match=r"no IDX files of the split 'train': there are emnist-digits-test, "):
        open_labelled(str(folder), split="train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": np.array([0, -1, 1]), "label_type": "i1"}, "values from -1 to 1; labels are whole numbers"),
        ({"labels": np.array([0, 0.5, 1]), "label_type": ">f4"}, "labels are whole numbers from 0"),
        ({"labels": np.array([0, 1])}, "do not belong together"),
        ({"labels": LABELS[:, None]}, "do not belong together"),
        ({"pixels": PIXELS[0]}, "do not belong together"),
        ({"pixels": PIXELS * 100.0, "pixel_type": ">f4"}, r"images-idx3-ubyte has floating-point values from 0\.0 to"),
        ({"pixels": PIXELS * 100.0, "pixel_type": ">i4"}, "images-idx3-ubyte has values of type >i4 from 0 to"),
    ],
)
def test_idx_files_of_other_values(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        open_labelled(str(idx_folder(tmp_path / "d", **options)))


def test_the_fingerprint_is_of_what_the_images_are_called_not_of_where_they_lie(tmp_path):
    first, moved = (open_labelled(str(webdataset(tmp_path / name))) for name in ("a", "b"))
    assert first.fingerprint() == moved.fingerprint()
    others = [open_labelled(str(webdataset(tmp_path / "c", (1, 1, 1)))), renamed(first, ["cat", "cow"])]
    assert len({s.fingerprint() for s in (first, *others)}) == 3


def test_other_names(tmp_path):
    source = open_labelled(str(webdataset(tmp_path / "d")), class_names=["feline", "canine"])
    assert source.class_names == ("feline", "canine")
    with pytest.raises(InputError, match="3 class names were given for the 2 classes"):
        renamed(source, ["a", "b", "c"])
    with pytest.raises(InputError, match="in another order, which would exchange labels: they are feline, canine"):
        renamed(source, ["canine", "feline"])
    with pytest.raises(InputError, match="in another order, which would exchange labels"):
        renamed(source, ["Canine", "FELINE "])
    with pytest.raises(InputError, match="in another order, which would exchange labels"):
        renamed(source, ["Canine", "wolf"])
    assert renamed(source, ["Feline", "wolf"]).class_names == ("Feline", "wolf")


def test_names_that_differ_in_capitals_are_two_classes(tmp_path):
    folder = webdataset(tmp_path, (0, 1, 1))
    source = open_labelled(str(folder), class_names=["Turkey", "turkey"])
    assert renamed(source, source.class_names).class_names == ("Turkey", "turkey")
    with pytest.raises(InputError, match="would exchange labels"):
        renamed(source, ["turkey", "Turkey"])
    with pytest.raises(InputError, match="'bird' is given twice"):
        renamed(source, ["bird", "bird"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "photo"}, "no column 'photo'; it has"),
        ({"label_column": "kind"}, "no column 'kind'; it has"),
        ({"label_column": "webp"}, "does not hold labels"),
        ({"image_column": "cls"}, "cannot be read as images"),
    ],
)
def test_columns_that_are_not_there(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        open_labelled(str(webdataset(tmp_path / "d")), **options)


def test_files_that_are_no_data_set(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"supported files are .parquet, .csv, .tsv, .json, .jsonl, .tar"):
        open_labelled(str(tmp_path / "x.npy"))
    (tmp_path / "x.tar").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"x.tar cannot be read as a tar archive"):
        open_labelled(str(tmp_path / "x.tar"))
    with pytest.raises(InputError, match="there is no folder nowhere/at/all"):
        open_labelled("nowhere/at/all")


class TestTheHub:
    def test_the_cause_at_the_bottom_is_told(self, monkeypatch):
        def fail(*_, **__):
            try:
                try:
                    raise ValueError("invalid literal for int() with base 10: 'bag'\nand more")
                except ValueError as e:
                    raise RuntimeError("An error occurred") from e
            except RuntimeError as e:
                raise datasets.exceptions.DatasetGenerationError("Generating the dataset failed") from e

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(InputError) as e:
            open_labelled("some/pets", split="test")
        assert str(e.value) == (
            "some/pets cannot be read as a data set (split 'test'): Generating the dataset failed; "
            "ValueError: invalid literal for int() with base 10: 'bag' and more"
        )

    def test_shards_that_were_taken_for_text(self, tmp_path, monkeypatch):
        """As many files of text are beside them: what `datasets` makes of CLIP benchmark's small sets."""
        local = webdataset(tmp_path / "d")
        (local / "test" / "nshards.txt").write_text("2\n")
        wanted = []

        def snapshot(source, repo_type, allow_patterns):
            wanted.append((source, repo_type, allow_patterns))
            return str(local)

        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"text": ["2"]}))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _, name, **__: str(local / name))
        source = open_labelled("some/pets", split="test")
        assert (source.class_names, source.labels, greys(source)) == (("cat", "dog"), (1, 0, 1), [10, 20, 30])
        assert wanted == [("some/pets", "dataset", ["test/*.tar", "test/nshards.txt"])]

    def test_a_table(self, monkeypatch):
        features = datasets.Features(
            image=datasets.Image(), label=datasets.ClassLabel(names=["no", "yes"]), other=datasets.Value("float32")
        )
        columns = {"image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(3)], "label": [1, 0, 1]}
        table = datasets.Dataset.from_dict(columns | {"other": [0.5] * 3}, features=features)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
        source = open_labelled("some/pets", split="test")
        assert (source.class_names, source.labels, greys(source)) == (("no", "yes"), (1, 0, 1), [0, 1, 2])
        assert source.ids == ("0.png", "1.png", "2.png")
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table.select([2, 0]))
        assert greys(open_labelled("some/pets", split="test")) == [2, 0]


def test_a_folder_of_tables_of_text(tmp_path):
    (tmp_path / "l.csv").write_text("image,label\n0.png,a\n")
    with pytest.raises(InputError, match=r"is a folder without images: give the file, .*l.csv"):
        open_labelled(str(tmp_path))


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.csv.gz", "x.zip"])
def test_a_compressed_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="is compressed: unpack it first"):
        open_labelled(str(tmp_path / name))


def test_names_of_classes_that_do_not_occur_in_idx_files(tmp_path):
    for name, array in (("t10k-images-idx3-ubyte", np.zeros((2, 2, 2))), ("t10k-labels-idx1-ubyte", np.array([0, 2]))):
        header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (tmp_path / name).write_bytes(header + array.astype(np.uint8).tobytes())
    source = open_labelled(str(tmp_path), class_names=["a", "b", "c", "d"])
    assert (source.class_names, source.labels) == (("a", "b", "c", "d"), (0, 2))
    assert any("2 of the class names" in note for note in source.notes)
    with pytest.raises(InputError, match="1 class names were given for the 2 classes"):
        open_labelled(str(tmp_path), class_names=["a"])
