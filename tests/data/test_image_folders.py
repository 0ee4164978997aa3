import io
import os
import shutil
import unicodedata
import zipfile
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffusion_classifier.data.images import load_image
from diffusion_classifier.data.labelled import open_labelled
from diffusion_classifier.data.splits import split_of
from diffusion_classifier.errors import InputError


def png(grey=0):
    file = io.BytesIO()
    Image.new("L", (2, 2), grey).save(file, "PNG")
    return file.getvalue()


PNG = png()


def tree(root, *names):
    """Images, texts (.txt, .xml, .md), and empty folders (a name that ends in /)."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a text" if name.endswith((".txt", ".xml", ".md")) else PNG)
    return str(root)


def told(source):
    """id → label of each image."""
    return {id_: source.label(i) for i, id_ in enumerate(source.ids)}


BOTH = ("{0}/cat/1.png", "{0}/dog/2.png", "{1}/cat/3.png", "{1}/dog/4.png")


def both(train, test):
    return [name.format(train, test) for name in BOTH]


class TestSplits:
    @pytest.mark.parametrize(
        ("name", "split"),
        [
            ("train", "train"), ("Train", "train"), ("TRAINING", "train"), ("training_set", "train"),
            ("train set", "train"), ("trainset", "train"), ("TrainData", "train"), ("train2017", "train"),
            ("train_2017", "train"), ("train_images", "train"), ("trainval", "train"), ("train ", "train"),
            ("val", "validation"), ("valid", "validation"), ("validation-set", "validation"), ("dev", "validation"),
            ("test_set", "test"), ("testing", "test"), ("Test.Images", "test"), ("eval", "test"),
            ("train_station", None), ("trains", None), ("contest", None), ("value", None), ("test tube", None),
            ("pretrain", None), ("cat", None), ("2017", None),
        ],
    )  # fmt: skip
    def test_names(self, name, split):
        assert split_of(name) == split

    @pytest.mark.parametrize(
        ("train", "test"),
        [
            ("train", "test"), ("training_set", "test_set"), ("Train", "Test"), ("TRAIN", "test"),
            ("train2017", "test2017"), ("train_images", "test_images"), ("trainset", "testset"),
            ("data/train", "data/test"), ("images/train", "images/test"), ("a/b/train", "a/b/test"),
            ("seg/train", "seg/test"), ("train/train", "test/test"), ("train/data", "test/data"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize(
        "beside",
        [
            (), ("annotations/a.xml",), ("labels/train/a.txt", "labels/test/b.txt"), ("docs/deep/er/a.md", "README.md"),
            ("__MACOSX/train/cat/._1.png", "__MACOSX/other/._2.png"), (".git/x.png", ".ipynb_checkpoints/a.png"),
            ("empty/",), ("Thumbs.db", ".DS_Store"),
        ],
    )  # fmt: skip
    def test_are_never_mixed(self, tmp_path, train, test, beside):
        folder = tree(tmp_path / "x", *both(train, test), *beside)
        for split, name, ids in (("train", train, (1, 2)), ("test", test, (3, 4)), (None, test, (3, 4))):
            source = open_labelled(folder, split=split)
            assert told(source) == {f"{name}/cat/{ids[0]}.png": "cat", f"{name}/dog/{ids[1]}.png": "dog"}
            counted = [b for b in beside if not b.startswith((".", "_", "Thumbs"))]
            for left in counted:
                assert any(left.partition("/")[0] in note for note in source.notes)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ((*both("train", "test"), "extra/cat/5.png"), r"holds images in extra, beside what looks like splits \("),
            ((*both("train", "test"), "extra/5.png"), r"holds images in extra, beside what looks like splits \("),
            ((*both("train", "test"), "masks/cat/5.png"), "masks"),
            ((*both("train", "test"), "cat/5.png", "dog/6.png"), "holds images in cat, dog, beside"),
            (("train/cat/1.png", "train/dog/2.png", "holdout/cat/3.png", "holdout/dog/4.png"), "holdout"),
            (("train/1.png", "plane/2.png"), "holds images in plane, beside"),
            (
                (*both("train", "test"), "testing/cat/5.png"),
                r"more than one folder for a split \(test, testing, train\)",
            ),
            ((*both("train", "test"), "Test/cat/5.png"), "more than one folder for a split"),
            ((*both("train", "test"), "eval/"), "more than one folder for a split"),
            (both("seg_train", "seg_test"), r"look like splits \(seg_test, seg_train\)"),
            (both("my-train-1", "my-test-1"), "look like splits"),
            (both("TrainA", "TestA"), "look like splits"),
            (("seg_train/1.png", "seg_test/2.png"), "look like splits"),
            (both("train/train", "train/test"), r"train holds folders of splits \(test, train\) within a split"),
            (("cat/train/1.png", "cat/test/2.png", "dog/train/3.png", "dog/test/4.png"), "like a split within a class"),
            ((*both("images/train", "images/test"), "masks/train/cat/1.png"), "like a split within a class"),
            ((*both("train", "test"), "README/train/cat/9.png"), "holds images in README"),
            (
                ("train/cat/1.png", "train/dog/2.png", "test/"),
                "split test of .* holds no images: see the folder .*test",
            ),
            (("train/cat/1.png", "train/dog/2.png", "test/a.txt"), "split test of .* holds no images"),
        ],
    )
    def test_that_are_ambiguous_are_rejected(self, tmp_path, names, message):
        folder = tree(tmp_path / "x", *names)
        with pytest.raises(InputError, match=message) as caught:
            open_labelled(folder)
        assert "\n" not in str(caught.value)

    @given(st.lists(st.sampled_from(
        ["train", "test", "val", "annotations", "extra", "Train", "training_set", "test_set", "cat", "seg_train"]
    ), min_size=2, max_size=5, unique=True), st.data())  # fmt: skip
    @settings(max_examples=60, deadline=None)
    def test_whatever_lies_beside_train_is_never_in_it(self, tmp_path_factory, folders, data):
        root = tmp_path_factory.mktemp("x") / "x"
        for name in folders:
            kind = data.draw(st.sampled_from(["classes", "flat", "text", "empty"]))
            inside = {"classes": ("a/1.png", "b/2.png"), "flat": ("1.png",), "text": ("t.txt",), "empty": ("",)}[kind]
            tree(root, *(f"{name}/{file}" for file in inside))
        try:
            source = open_labelled(str(root), split="train", class_names=None)
        except InputError:
            return
        finally:
            shutil.rmtree(root)
        tops = {id_.partition("/")[0] for id_ in source.ids}
        if not any("taken for a class" in note for note in source.notes):
            assert len({split_of(top) for top in tops}) == 1
            if split_of(next(iter(tops))):
                assert {split_of(top) for top in tops} == {"train"}

    def test_a_class_that_is_called_like_a_split(self, tmp_path):
        source = open_labelled(tree(tmp_path / "x", "car/1.png", "train/2.png", "plane/3.png"))
        assert source.class_names == ("car", "plane", "train")
        (note,) = source.notes
        assert "train was taken for a class" in note

    def test_a_link_is_a_split(self, tmp_path):
        folder = tree(tmp_path / "x", "train/cat/1.png", "train/dog/2.png")
        tree(tmp_path / "elsewhere", "cat/3.png", "dog/4.png")
        (tmp_path / "x" / "test").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "x" / "test")
        assert set(told(open_labelled(folder))) == {"test/cat/3.png", "test/dog/4.png"}

    def test_the_only_one_is_said(self, tmp_path):
        source = open_labelled(tree(tmp_path / "x", "train/cat/1.png", "train/dog/2.png"))
        assert source.notes == (f"the split train was read, which is the only one in {tmp_path / 'x'}",)

    def test_images_beside_splits_are_said(self, tmp_path):
        source = open_labelled(tree(tmp_path / "x", *both("train", "test"), "logo.png"))
        assert len(source) == 2
        assert "1 image lies beside the folders of splits in" in source.notes[0]
        assert source.notes[0].endswith(": logo.png")

    def test_the_folder_of_a_split_itself(self, tmp_path):
        tree(tmp_path / "x", *both("train", "test_set"), "extra/1.png")
        for split in (None, "test", "test_set"):
            assert told(open_labelled(str(tmp_path / "x" / "test_set"), split=split)) == {
                "cat/3.png": "cat",
                "dog/4.png": "dog",
            }
        for split in ("validation", "foo"):
            with pytest.raises(InputError, match=f"has no split '{split}'"):
                open_labelled(str(tmp_path / "x" / "test_set"), split=split)

    @pytest.mark.parametrize("name", ["test_1.png", "dev_1.png", "validation-2.png", "train.png"])
    def test_names_of_files_are_no_splits(self, tmp_path, name):
        folder = tree(tmp_path / "x", f"cat/{name}", "cat/1.png", f"dog/{name}")
        assert len(open_labelled(folder)) == 3


class TestClasses:
    @pytest.mark.parametrize(
        "names",
        [
            ("bag/2023/0.png", "bag/2024/1.png", "coat/2023/2.png", "coat/2024/3.png"),
            ("animal/bat/0.png", "sport/bat/1.png", "sport/ball/2.png"),
            ("animal/bat/0.png", "sport/ball/1.png"),
            ("Art/chair/0.png", "Clipart/chair/1.png", "Art/bed/2.png"),
        ],
    )
    def test_of_two_levels_are_rejected(self, tmp_path, names):
        with pytest.raises(InputError, match=r"may be the folders in it \(.* or those one level below \(.*CSV file"):
            open_labelled(tree(tmp_path / "x", *names), class_names=None)

    @pytest.mark.parametrize(
        ("names", "labels"),
        [
            (("cat/images/1.png", "dog/images/2.png"), ["cat", "dog"]),  # as Tiny ImageNet
            (("cat/images/1.png", "dog/images/2.png", "dog/images/a/3.png"), ["cat", "dog", "dog"]),
            (("cat/1.png", "cat/more/2.png", "dog/3.png"), ["cat", "cat", "dog"]),
            (("cat/more/2.png", "dog/3.png", "dog/2024/x/4.png"), ["cat", "dog", "dog"]),
        ],
    )
    def test_images_further_down_belong_to_the_class_above(self, tmp_path, names, labels):
        source = open_labelled(tree(tmp_path / "x", *names))
        assert told(source) == dict(zip(sorted(names), labels, strict=True))
        assert "belong to the class above them" in source.notes[0]

    def test_one_folder_that_holds_all_is_passed_through(self, tmp_path):
        source = open_labelled(tree(tmp_path / "x", "PetImages/cat/1.png", "PetImages/dog/2.png", "docs/a.md"))
        assert told(source) == {"PetImages/cat/1.png": "cat", "PetImages/dog/2.png": "dog"}
        assert "docs" in source.notes[0]
        assert "were read from" in source.notes[1]

    def test_without_images_stay_candidates(self, tmp_path):
        folder = tree(tmp_path / "x", "Bag/0.png", "Coat/1.png", "Dress/", "Hat/deep/", "notes/a.txt")
        source = open_labelled(folder)
        assert source.class_names == ("Bag", "Coat", "Dress", "Hat")
        assert source.notes == (
            "2 classes have no images and can be predicted all the same: Dress, Hat",
            "1 folder holds no images and was left out: notes",
        )
        assert open_labelled(tree(tmp_path / "y", "Bag/0.png", "Coat/")).class_names == ("Bag", "Coat")

    def test_a_stray_image(self, tmp_path):
        folder = tree(tmp_path / "x", "Bag/0.png", "Coat/1.png", "stray.png")
        for names in (None, ["a", "b"]):
            with pytest.raises(InputError, match=r"1 image lies beside the folders of classes .*: stray\.png; move"):
                open_labelled(folder, class_names=names)
        source = open_labelled(folder, allow_incomplete=True)
        assert told(source) == {"Bag/0.png": "Bag", "Coat/1.png": "Coat"}
        assert source.notes[0].endswith("left out: stray.png")

    def test_images_without_folders(self, tmp_path):
        for name in ("x/1.png", "y/photos/1.png"):
            folder = tree(tmp_path / name.partition("/")[0], name.partition("/")[2])
            with pytest.raises(InputError, match="must have at least two sub-folders"):
                open_labelled(folder)
            assert told(open_labelled(folder, class_names=["a", "b"])) == {name.partition("/")[2]: None}
        assert "taken to be unknown" in open_labelled(folder, class_names=["a", "b"]).notes[0]

    @pytest.mark.parametrize(
        ("names", "ordered"),
        [
            (("1", "10", "2"), ("1", "2", "10")), (("01", "10", "2"), ("01", "2", "10")),
            (("class_1", "class_10", "class_2"), ("class_1", "class_2", "class_10")),
            (("-1", "1", "10"), ("-1", "1", "10")), (("1", "01", "2"), ("01", "1", "2")),
            (("001", "002", "010"), ("001", "002", "010")), (("1.5", "10", "2"), ("1.5", "10", "2")),
            (("707-320", "727-200", "A300"), ("707-320", "727-200", "A300")),
            (("n01440764", "n01443537", "n02085620"), ("n01440764", "n01443537", "n02085620")),
            (("10 cats", "9 dogs"), ("10 cats", "9 dogs")), (("٢", "١٠"), ("١٠", "٢")),
        ],
    )  # fmt: skip
    def test_order(self, tmp_path, names, ordered):
        source = open_labelled(tree(tmp_path / "x", *(f"{name}/{name}.png" for name in names)))
        assert source.class_names == ordered
        assert all(id_ == f"{label}/{label}.png" for id_, label in told(source).items())
        assert bool(source.notes) == (list(ordered) != sorted(ordered))
        given = open_labelled(str(tmp_path / "x"), class_names=[f"name of {name}" for name in ordered])
        assert all(label == f"name of {id_.partition('/')[0]}" for id_, label in told(given).items())

    @given(st.sets(st.integers(0, 200), min_size=2, max_size=12))
    @settings(max_examples=20, deadline=None)
    def test_numbered_folders_take_names_in_the_order_of_numbers(self, tmp_path_factory, numbers):
        folder = tree(tmp_path_factory.mktemp("x") / "x", *(f"{n}/a.png" for n in numbers))
        source = open_labelled(folder, class_names=[f"the number {n}" for n in sorted(numbers)])
        assert all(label == f"the number {id_.partition('/')[0]}" for id_, label in told(source).items())
        shutil.rmtree(folder)

    def test_that_look_the_same_are_rejected(self, tmp_path):
        for i, other in enumerate((unicodedata.normalize("NFD", "café"), "café ", " café")):
            folder = tree(tmp_path / str(i), "café/1.png", f"{other}/2.png")
            with pytest.raises(InputError, match="look the same: rename or merge them"):
                open_labelled(folder)

    def test_that_differ_in_capitals_are_two(self, tmp_path):
        source = open_labelled(tree(tmp_path / "x", "Cat/1.png", "cat/2.png"))
        assert told(source) == {"Cat/1.png": "Cat", "cat/2.png": "cat"}
        assert source.notes == (
            "the classes 'Cat' and 'cat' differ in capitals only, and are two classes; a model that ignores capitals "
            "cannot tell them apart",
        )

    @pytest.mark.parametrize("name", ["big\ncat", " ", "a\tb", os.fsdecode(b"caf\xe9")])
    def test_that_are_no_text_are_rejected(self, tmp_path, name):
        with pytest.raises(InputError, match="cannot be a class") as caught:
            open_labelled(tree(tmp_path / "x", f"{name}/1.png", "dog/2.png"))
        assert str(caught.value).isprintable()


class TestFiles:
    def test_are_told_by_content_where_the_suffix_says_nothing(self, tmp_path):
        folder = tree(
            tmp_path / "x", "a/photo.v1.0", "a/none", "a/1.PNG", "a/2.JpG", "b/3.Jpeg", "b/4.bin", "b/5.jpg_large"
        )
        texts = {
            "a/a.txt": b"x", "a/BMW": b"BMW is a make", "b/P5": b"P5 and P6", "b/x.npy": b"\x93NUMPY", "b/y.0": b"",
            "b/z.svg": b"<svg/>", "b/d.pdf": b"%PDF-1.4",
        }  # fmt: skip
        for name, content in texts.items():
            (tmp_path / "x" / name).write_bytes(content)
        source = open_labelled(folder)
        assert len(source) == 7
        assert {load_image(source.read(i)).image.size for i in range(7)} == {(2, 2)}
        (note,) = source.notes
        assert note == "7 files are no images and were left out: a/BMW, a/a.txt, b/P5, …"

    @pytest.mark.parametrize("name", ["a.heic", "a.HEIC", "a.tga", "a.jxl", "a.cr2", "a.png", "no suffix"])
    def test_pictures_that_cannot_be_read_are_not_left_out(self, tmp_path, name):
        folder = tree(tmp_path / "x", "cat/1.png", "dog/2.png")
        (tmp_path / "x" / "cat" / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
        assert len(open_labelled(folder)) == 3

    def test_links_to_nowhere_are_not_left_out(self, tmp_path):
        folder = tree(tmp_path / "x", "cat/1.png", "dog/2.png")
        (tmp_path / "x" / "dog" / "gone").symlink_to("nowhere")
        assert len(open_labelled(folder)) == 3

    def test_archives_are_said(self, tmp_path):
        folder = tree(tmp_path / "x", "cat/1.png", "dog/2.png")
        (tmp_path / "only").mkdir()
        for name in ("x/all.zip", "x/cat/more.ZIP", "only/train.zip", "x/backup.tar"):
            with zipfile.ZipFile(tmp_path / name, "w") as archive:
                archive.writestr("cat/9.png", PNG)
        source = open_labelled(folder)
        assert set(source.ids) == {"cat/1.png", "dog/2.png"}
        assert source.notes == (
            "3 files are no images and were left out: all.zip, backup.tar, cat/more.ZIP; archives are not opened: "
            "unpack them if they hold images",
        )
        with pytest.raises(InputError, match=r"holds no images, but train\.zip; archives are not opened: unpack them"):
            open_labelled(str(tmp_path / "only"))

    def test_tables_beside_folders_of_images(self, tmp_path):
        folder = tree(tmp_path / "x", "cat/1.png", "dog/2.png")
        (tmp_path / "x" / "labels.Parquet").write_bytes(b"PAR1")
        with pytest.raises(
            InputError, match=r"holds both tables \(.*labels\.Parquet\) and folders of images \(cat, dog\)"
        ):
            open_labelled(folder)

    def test_a_folder_that_cannot_be_read(self, tmp_path, monkeypatch):
        folder = tree(tmp_path / "x", "cat/1.png", "dog/2.png")
        scandir = os.scandir

        def denied(path):
            if str(path).endswith("dog"):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", denied)  # the tests may run as root, whom nothing is denied
        with pytest.raises(InputError, match=r"the folder .*dog cannot be read: Permission denied"):
            open_labelled(folder)

    def test_relative_names(self, tmp_path, monkeypatch):
        tree(tmp_path / "x", "cat/1.png", "dog/2.png")
        monkeypatch.chdir(tmp_path / "x")
        source = open_labelled(".")
        assert told(source) == {"cat/1.png": "cat", "dog/2.png": "dog"}
        monkeypatch.chdir(tmp_path)
        assert load_image(source.read(1)).image.size == (2, 2)
        assert open_labelled("x/").fingerprint() == source.fingerprint()

    def test_columns(self, tmp_path):
        folder = tree(tmp_path / "x", "cat/1.png", "dog/2.png")
        assert len(open_labelled(folder, image_column="image", label_column="label")) == 2
        with pytest.raises(InputError, match="no column 'kind'; it has image, label"):
            open_labelled(folder, label_column="kind")

    @pytest.mark.parametrize("content", ["name,size\na,1\n", "", "x" * 100_000])
    def test_metadata_of_another_kind(self, tmp_path, content):
        folder = tree(tmp_path / "x", "cat/1.png", "dog/2.png")
        (tmp_path / "x" / "metadata.csv").write_text(content)
        source = open_labelled(folder)
        assert told(source) == {"cat/1.png": "cat", "dog/2.png": "dog"}
        assert source.notes == ("1 file is no image and was left out: metadata.csv",)

    def test_a_folder_of_tables(self, tmp_path):
        folder = tree(tmp_path / "x", "a.txt")
        (tmp_path / "x" / "labels.CSV").write_text("image,label\n")
        with pytest.raises(InputError, match=r"x is a folder without images: give the file, .*labels\.CSV"):
            open_labelled(folder)


def test_classes_that_only_another_split_has_are_noted(tmp_path):
    folder = tree(tmp_path / "x", "train/a/1.png", "train/b/1.png", "train/c/1.png", "test/a/1.png", "test/b/1.png")
    source = open_labelled(folder)
    assert source.class_names == ("a", "b")
    (note,) = source.notes
    assert note.startswith("1 folder of another split is not in test, and so no class that can be predicted: c;")
    assert open_labelled(folder, split="train").notes == ()
    (tmp_path / "x" / "test" / "c").mkdir()
    source = open_labelled(folder)
    assert source.class_names == ("a", "b", "c")
    assert source.notes == ("1 class has no images and can be predicted all the same: c",)


@pytest.mark.parametrize("beside", [(), ("test/notes.txt", "0.tar")])
def test_each_folder_is_listed_once(tmp_path, monkeypatch, beside):
    names = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in ("a", "b") for i in (0, 1)]
    tree(tmp_path, *names, *beside)
    listed, scandir = Counter(), os.scandir

    def counted(path="."):
        listed[os.fspath(path)] += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    assert len(open_labelled(str(tmp_path))) == 4
    assert listed == {
        str(tmp_path / name): 1 for name in ("", "test", "test/a", "test/b", "train", "train/a", "train/b")
    }
