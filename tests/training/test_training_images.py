import gzip
import io
import struct
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffusion_classifier.errors import InputError
from diffusion_classifier.training.images import TrainingImages, load_labelled_images


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def idx(array):
    """Write the IDX format (http://yann.lecun.com/exdb/mnist): 0, 0, type, rank, sizes, values."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)


LABELS = np.array([2, 0, 1, 1, 0, 2])


@pytest.fixture
def idx_folder(tmp_path, pixels):
    folder = tmp_path / "idx"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte").write_bytes(idx(pixels))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(LABELS))
    return folder


def save(path, color, size=(4, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


@pytest.fixture
def image_folder(tmp_path):
    """Save red images as cats, and blue ones as dogs."""
    folder = tmp_path / "photos"
    for i in range(3):
        save(folder / "cat" / f"{i}.png", (200 + i, 0, 0))
        save(folder / "dog" / f"{i}.png", (0, 0, 200 + i))
    return folder


def png(color, mode="L", size=(4, 4)):
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def save_parquet(folder, columns, **features):
    folder.mkdir()
    known = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])} | features
    table = datasets.Dataset.from_dict(columns, features=datasets.Features({name: known[name] for name in columns}))
    table.to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


class TestIdx:
    @pytest.mark.parametrize("packed", [False, True])
    def test_reads_images_and_labels(self, idx_folder, pixels, packed):
        if packed:
            for path in list(idx_folder.iterdir()):
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
        data = load_labelled_images(str(idx_folder))
        assert data.images.dtype == torch.uint8
        assert data.images.shape == (6, 1, 4, 4)
        assert np.array_equal(data.images[:, 0].numpy(), pixels)
        assert data.labels.dtype == torch.int64
        assert data.labels.tolist() == LABELS.tolist()
        assert data.class_names == ("0", "1", "2")

    def test_the_test_split_has_other_files(self, idx_folder, pixels):
        (idx_folder / "t10k-images-idx3-ubyte").write_bytes(idx(255 - pixels))
        (idx_folder / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS))
        data = load_labelled_images(str(idx_folder), split="test")
        assert np.array_equal(data.images[:, 0].numpy(), 255 - pixels)

    def test_resizes(self, idx_folder):
        (idx_folder / "train-images-idx3-ubyte").write_bytes(idx(np.arange(6)[:, None, None] * np.full((6, 4, 4), 40)))
        data = load_labelled_images(str(idx_folder), size=8)
        assert data.images.shape == (6, 1, 8, 8)
        assert torch.equal(data.images, (torch.arange(6) * 40).view(6, 1, 1, 1).expand(6, 1, 8, 8))

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("train-images-idx3-ubyte", b"\x89PNG" + bytes(100), "not an IDX file"),
            ("train-images-idx3-ubyte", struct.pack(">4B3I", 0, 0, 7, 3, 1, 1, 1) + bytes(4), "not an IDX file"),
            ("train-images-idx3-ubyte", idx(np.zeros((6, 4, 4)))[:-1], "should hold 6 × 4 × 4 values, and has 95"),
            ("train-images-idx3-ubyte", struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "and has 0"),
            ("train-images-idx3-ubyte", b"\0\0", "requires a buffer"),
            ("train-labels-idx1-ubyte", b"", "requires a buffer"),
            ("train-labels-idx1-ubyte.gz", gzip.compress(idx(LABELS), mtime=0)[:-9], "end-of-stream"),
            ("train-labels-idx1-ubyte.gz", gzip.compress(idx(LABELS), mtime=0)[:10] + b"\xff" * 20, "invalid"),
            ("train-labels-idx1-ubyte.gz", idx(LABELS), "gzip"),
        ],
    )
    def test_a_broken_file_is_named(self, idx_folder, name, content, message):
        (idx_folder / name.removesuffix(".gz")).unlink()
        (idx_folder / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.*{message}"):
            load_labelled_images(str(idx_folder))

    def test_missing_labels(self, idx_folder):
        (idx_folder / "train-labels-idx1-ubyte").unlink()
        with pytest.raises(InputError, match="no file train-labels-idx1-ubyte"):
            load_labelled_images(str(idx_folder))

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (np.zeros((6, 4, 4)), np.zeros(5), r"\(6, 4, 4\) and labels \(5,\)"),
            (np.zeros((0, 4, 4)), np.zeros(0), r"\(0, 4, 4\)"),
            (np.zeros(6), np.zeros(6), r"images \(6,\)"),
            (np.zeros((6, 5, 4)), LABELS, r"idx\[0\] is 4×5: give a size"),
        ],
    )
    def test_arrays_that_do_not_fit(self, idx_folder, images, labels, message):
        (idx_folder / "train-images-idx3-ubyte").write_bytes(idx(images))
        (idx_folder / "train-labels-idx1-ubyte").write_bytes(idx(labels))
        with pytest.raises(InputError, match=message):
            load_labelled_images(str(idx_folder))


class TestImageFolder:
    def test_names_come_from_the_sub_folders(self, image_folder):
        data = load_labelled_images(str(image_folder))
        assert data.class_names == ("cat", "dog")
        assert data.images.shape == (6, 3, 4, 4)
        for image, label in zip(data.images, data.labels.tolist(), strict=True):
            red, _, blue = image[:, 0, 0].tolist()
            assert (red > blue) == (data.class_names[label] == "cat")

    def test_greyscale_needs_one_channel(self, image_folder):
        for path in image_folder.glob("*/*.png"):
            grey = 100 + 10 * int(path.stem)
            Image.new("L", (4, 4), grey).convert("L" if grey == 100 else "RGB").save(path)
        data = load_labelled_images(str(image_folder))
        assert data.images.shape == (6, 1, 4, 4)
        assert sorted(data.images[:, 0, 0, 0].tolist()) == [100, 100, 110, 110, 120, 120]

    def test_one_coloured_image_makes_all_three_channels(self, image_folder):
        for path in image_folder.glob("*/*.png"):
            save(path, 90, mode="L")
        save(image_folder / "dog" / "0.png", (90, 90, 91))
        assert load_labelled_images(str(image_folder)).images.shape == (6, 3, 4, 4)

    def test_other_sizes_are_refused_by_name(self, image_folder):
        save(image_folder / "dog" / "1.png", "red", (8, 8))
        with pytest.raises(InputError, match=r"dog/1\.png differs in size.*give a size"):
            load_labelled_images(str(image_folder))

    def test_a_shape_that_is_not_square_is_refused_by_name(self, image_folder):
        save(image_folder / "cat" / "2.png", "red", (8, 4))
        with pytest.raises(InputError, match=r"cat/2\.png is 8×4: give a size"):
            load_labelled_images(str(image_folder))

    def test_with_a_size_all_are_brought_to_it(self, image_folder):
        save(image_folder / "cat" / "2.png", (202, 0, 0), (9, 5))
        data = load_labelled_images(str(image_folder), size=2)
        assert data.images.shape == (6, 3, 2, 2)
        assert sorted(data.images[data.labels == 0][:, 0, 0, 0].tolist()) == [200, 201, 202]

    def test_orientation_and_transparency_count(self, image_folder):
        exif = Image.Exif()
        exif[0x0112] = 3
        upright = Image.new("RGB", (4, 4), "black")
        upright.paste("red", (0, 0, 4, 2))
        upright.rotate(180).save(image_folder / "cat" / "0.png", exif=exif)
        save(image_folder / "cat" / "1.png", (0, 0, 0, 0), mode="RGBA")
        data = load_labelled_images(str(image_folder))
        assert data.images[0, 0, :, 0].tolist() == [255, 255, 0, 0]
        assert data.images[1].unique().tolist() == [255]

    def test_a_broken_image_is_named(self, image_folder):
        (image_folder / "dog" / "1.png").write_bytes((image_folder / "dog" / "1.png").read_bytes()[:40])
        with pytest.raises(InputError, match=r"dog/1\.png"):
            load_labelled_images(str(image_folder))

    def test_one_class_alone(self, tmp_path):
        for i in range(2):
            save(tmp_path / "photos" / "cat" / f"{i}.png", "red")
        with pytest.raises(InputError, match="photos must have at least two sub-folders"):
            load_labelled_images(str(tmp_path / "photos"))

    def test_an_image_beside_the_sub_folders_has_no_class(self, image_folder):
        save(image_folder / "stray.png", "red")
        with pytest.raises(InputError, match=r"1 image lies beside the folders of classes .* stray\.png; move"):
            load_labelled_images(str(image_folder))

    def test_no_image_at_all(self, tmp_path):
        (tmp_path / "photos").mkdir()
        with pytest.raises(InputError, match="photos: the folder holds no files"):
            load_labelled_images(str(tmp_path / "photos"))

    def test_a_split_that_is_not_there(self, image_folder):
        with pytest.raises(InputError, match="split 'test'"):
            load_labelled_images(str(image_folder), split="test")

    @pytest.mark.parametrize("source", ["/nowhere/at/all", "photos/", "./photos", "~/photos"])
    def test_a_mistyped_folder_is_not_looked_for_on_the_hub(self, monkeypatch, source):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("looked for"))
        with pytest.raises(InputError, match=f"no folder {source}"):
            load_labelled_images(source)

    def test_what_may_be_a_hub_id_is(self, monkeypatch):
        def fail(source, split):
            raise ConnectionError(f"no network for {source} {split}")

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(InputError, match="no network for uoft-cs/cifar10 test"):
            load_labelled_images("uoft-cs/cifar10", split="test")


class TestParquet:
    def test_class_labels(self, tmp_path):
        source = save_parquet(tmp_path / "d", {"image": [png(1), png(2), png(3)], "label": [1, 0, 1]})
        data = load_labelled_images(source)
        assert data.images[:, 0, 0, 0].tolist() == [1, 2, 3]
        assert data.labels.tolist() == [1, 0, 1]
        assert data.class_names == ("no", "yes")

    def test_string_labels_are_sorted(self, tmp_path):
        columns = {"image": [png(1), png(2), png(3)], "kind": ["owl", "ant", "owl"]}
        source = save_parquet(tmp_path / "d", columns, kind=datasets.Value("string"))
        with pytest.raises(InputError, match=r"0 label columns \(image, kind\); name one with --label-column"):
            load_labelled_images(source)
        data = load_labelled_images(source, label_column="kind")
        assert data.labels.tolist() == [1, 0, 1]
        assert data.class_names == ("ant", "owl")

    def test_whole_numbers_are_sorted_as_numbers(self, tmp_path):
        columns = {"image": [png(i) for i in range(3)], "digit": [10, 9, 2]}
        source = save_parquet(tmp_path / "d", columns, digit=datasets.Value("int64"))
        data = load_labelled_images(source, label_column="digit", class_names=["two", "nine", "ten"])
        assert [data.class_names[i] for i in data.labels.tolist()] == ["ten", "nine", "two"]

    def test_columns_can_be_chosen(self, tmp_path):
        columns = {"photo": [png(1), png(2)], "depth": [png(5), {"bytes": b"not read", "path": None}], "label": [1, 0]}
        source = save_parquet(tmp_path / "d", columns, photo=datasets.Image(), depth=datasets.Image())
        with pytest.raises(InputError, match=r"2 image columns \(photo, depth\)"):
            load_labelled_images(source)
        assert load_labelled_images(source, image_column="photo").images[:, 0, 0, 0].tolist() == [1, 2]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"image_column": "photo"}, "no column 'photo'; it has image, label, score"),
            ({"label_column": "class"}, "no column 'class'"),
            ({"image_column": "score"}, "column 'score' of .* cannot be read as images"),
            ({"label_column": "image"}, "column 'image' of .* does not hold labels"),
        ],
    )
    def test_unfit_columns(self, tmp_path, options, message):
        columns = {"image": [png(1), png(2)], "label": [1, 0], "score": [0.1, 0.2]}
        source = save_parquet(tmp_path / "d", columns, score=datasets.Value("float64"))
        with pytest.raises(InputError, match=message):
            load_labelled_images(source, **options)

    @pytest.mark.parametrize("labels", [[1, -1, 0], [1, None, 0]])
    def test_a_row_without_a_label_is_named(self, tmp_path, labels):
        source = save_parquet(tmp_path / "d", {"image": [png(1)] * 3, "label": labels})
        with pytest.raises(InputError, match=r"d\[1\] has no label"):
            load_labelled_images(source)

    @pytest.mark.parametrize("image", [None, {"bytes": b"no image", "path": None}])
    def test_a_broken_image_is_named_by_its_row(self, tmp_path, image):
        source = save_parquet(tmp_path / "d", {"image": [png(1), image], "label": [1, 0]})
        with pytest.raises(InputError, match=r"d\[1\]"):
            load_labelled_images(source)

    def test_one_class_alone(self, tmp_path):
        source = save_parquet(tmp_path / "d", {"image": [png(1), png(2)], "label": [1, 1]})
        with pytest.raises(InputError, match="of one class; at least two"):
            load_labelled_images(source)

    def test_no_rows(self, tmp_path):
        source = save_parquet(tmp_path / "d", {"image": [], "label": []})
        with pytest.raises(InputError, match="holds no data"):
            load_labelled_images(source)


class TestClassNames:
    def test_replace_the_data_sets_own(self, idx_folder):
        data = load_labelled_images(str(idx_folder), class_names=["a", " b ", "c"])
        assert data.class_names == ("a", "b", "c")

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["a", "b"], "2 class names were given for the 3 classes"),
            (["a", "", "c"], "label 2 of 3 is empty"),
            (["a", "b", "a"], "'a' is given twice"),
        ],
    )
    def test_must_fit(self, idx_folder, names, message):
        with pytest.raises(InputError, match=message):
            load_labelled_images(str(idx_folder), class_names=names)

    def test_a_class_without_images_is_said(self, idx_folder):
        data = load_labelled_images(str(idx_folder), class_names=["a", "b", "c", "d"])
        assert data.class_names == ("a", "b", "c", "d")
        assert data.labels.tolist() == LABELS.tolist()
        assert any("1 classes of" in note and "have no training image, such as 'd'" in note for note in data.notes)

    @pytest.mark.parametrize(("names", "message"), [(("Bag", "bag"), "'bag' is given twice"), (("a", " "), "is empty")])
    def test_names_that_evaluate_would_refuse(self, tmp_path, names, message):
        features = {"label": datasets.ClassLabel(names=list(names))}
        source = save_parquet(tmp_path / "d", {"image": [png(1), png(2)], "label": [1, 0]}, **features)
        with pytest.raises(InputError, match=message):
            load_labelled_images(source)


class TestSplit:
    @given(st.integers(1, 30), st.data(), st.integers(0, 2**63 - 1))
    def test_disjoint_and_complete(self, n, data, seed):
        held_out = data.draw(st.integers(0, n - 1))
        images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1)
        whole = TrainingImages(images, torch.arange(n), tuple(map(str, range(n))))
        rest, held = whole.split(held_out, seed)
        assert len(held) == held_out
        assert sorted(rest.labels.tolist() + held.labels.tolist()) == list(range(n))
        for part in (rest, held):
            assert part.images.flatten().tolist() == part.labels.tolist()

    def test_depends_on_the_seed_alone(self):
        data = TrainingImages(torch.zeros(50, 1, 1, 1, dtype=torch.uint8), torch.arange(50), ("a", "b"))
        torch.manual_seed(0)
        once = data.split(10, 3)[1].labels
        torch.manual_seed(1)
        assert torch.equal(data.split(10, 3)[1].labels, once)
        assert not torch.equal(data.split(10, 4)[1].labels, once)

    @pytest.mark.parametrize("held_out", [-1, 3, 4])
    def test_something_must_be_left(self, held_out):
        data = TrainingImages(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), torch.arange(3), ("a", "b"))
        with pytest.raises(InputError, match=f"{held_out} images cannot be held out of 3"):
            data.split(held_out, 0)


def test_the_fingerprint_changes_with_the_data():
    data = TrainingImages(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0]), ("a", "b"))
    images, labels = data.images.clone(), data.labels.clone()
    images[2, 0, 1, 1] = 1
    labels[2] = 1
    same = TrainingImages(data.images.clone(), data.labels.clone(), ("a", "b"))
    assert same.fingerprint() == data.fingerprint()
    assert (
        len(
            {data.fingerprint(), replace(data, images=images).fingerprint(), replace(data, labels=labels).fingerprint()}
        )
        == 3
    )


def test_a_broken_file(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"x\.parquet cannot be read as Parquet"):
        load_labelled_images(str(tmp_path / "x.parquet"))
