"""Parquet files: read in place, whatever wrote them; and images in their columns."""

import io
import os

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import IMAGE_TYPE, greys, png, table
from PIL import Image

from diffusion_classifier.data.images import load_image
from diffusion_classifier.data.labelled import open_labelled
from diffusion_classifier.errors import InputError

rng = np.random.default_rng(0)
GREY = rng.integers(0, 256, (3, 5, 6), dtype=np.uint8)
COLOUR = rng.integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)


def write(path, image, labels=("a", "b", "c", "d"), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, pa.Array) else pa.array(image)
    pq.write_table(pa.table({"image": image, "label": list(labels)[: len(image)]}), path, **options)
    return str(path)


def pixels_of(source):
    return np.stack([np.asarray(load_image(source.read(i)).image) for i in range(len(source))])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=40), st.sampled_from([1, 7, 33, 40, 100]))
def test_images_in_any_order_from_any_row_groups(tmp_path_factory, order, group):
    folder = tmp_path_factory.mktemp("t")
    for shard, rows in enumerate((range(40), range(40, 100))):
        images = pa.array([{"bytes": png(i), "path": None} for i in rows], IMAGE_TYPE)
        columns = pa.table({"image": images, "label": pa.array(["a", "b"] * (len(rows) // 2))})
        pq.write_table(columns, folder / f"x-{shard}-of-2.parquet", row_group_size=group)
    source = open_labelled(str(folder))
    assert len(source) == 100
    assert greys(source.take(order)) == order


def test_a_table_that_was_replaced_under_the_same_time_stamp(tmp_path):
    path = tmp_path / "x.parquet"
    table(path, ["bag", "coat"])
    before = path.stat()
    assert open_labelled(str(path)).labels == (0, 1)
    table(path, ["coat", "bag"])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert open_labelled(str(path)).labels == (1, 0)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("suffix", [".PARQUET", ".Parquet"])
def test_suffixes_in_capitals(tmp_path, suffix):
    assert len(open_labelled(table(tmp_path / f"X{suffix}", ["a", "b"]))) == 2
    assert len(open_labelled(str(tmp_path))) == 2


def binary(type_):
    return pa.array([png(i) for i in range(3)], type_)


def struct(bytes_, path, *more):
    rows = [{"bytes": png(i), "path": f"{i}.png"} for i in range(3)]
    return pa.array(rows, pa.struct([("path", path), ("bytes", bytes_), *more]))


@pytest.mark.parametrize(
    "image",
    [
        binary(pa.binary()), binary(pa.large_binary()), binary(pa.binary_view()),
        struct(pa.binary(), pa.string()), struct(pa.large_binary(), pa.large_string()),
        struct(pa.binary_view(), pa.string_view()), struct(pa.binary(), pa.string(), ("height", pa.int64())),
        pa.array([{"bytes": png(i)} for i in range(3)]),
    ],
    ids=lambda array: str(array.type),
)  # fmt: skip
def test_types_of_images(tmp_path, image):
    """As those that polars and pandas write."""
    assert greys(open_labelled(write(tmp_path / "x.parquet", image))) == [0, 1, 2]


@pytest.mark.parametrize("type_", [pa.uint8(), pa.int32(), pa.int64(), pa.uint16()], ids=str)
@pytest.mark.parametrize("pixels", [GREY, COLOUR, COLOUR[..., :1]], ids=["grey", "colour", "one channel"])
@pytest.mark.parametrize("list_", [pa.list_, pa.large_list, pa.list_view], ids=["list", "large", "view"])
def test_lists_of_pixels(tmp_path, type_, pixels, list_):
    nested = type_
    for _ in range(pixels.ndim - 1):
        nested = list_(nested)
    source = open_labelled(write(tmp_path / "x.parquet", pa.array(pixels.tolist(), nested)))
    expected = pixels if pixels.ndim == 4 else pixels[..., None]
    np.testing.assert_array_equal(pixels_of(source), np.broadcast_to(expected, (3, 5, 6, 3)))


@pytest.mark.parametrize(("pixels", "feature"), [(GREY, datasets.Array2D), (COLOUR, datasets.Array3D)])
def test_arrays_of_datasets(tmp_path, pixels, feature):
    features = {"image": feature(pixels.shape[1:], "uint8"), "label": datasets.Value("string")}
    columns = {"image": pixels.tolist(), "label": ["a", "b", "c"]}
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(tmp_path / "x.parquet")
    expected = pixels if pixels.ndim == 4 else pixels[..., None]
    found = pixels_of(open_labelled(str(tmp_path / "x.parquet")))
    np.testing.assert_array_equal(found, np.broadcast_to(expected, (3, 5, 6, 3)))


def test_lists_of_fractions(tmp_path):
    found = pixels_of(open_labelled(write(tmp_path / "x.parquet", (GREY / 255).tolist())))
    np.testing.assert_array_equal(found[..., 0], GREY)


def test_lists_of_pixels_in_json(tmp_path):
    rows = "".join(f'{{"image": {GREY[i].tolist()}, "label": "{i}"}}\n' for i in range(3))
    (tmp_path / "x.jsonl").write_text(rows)
    np.testing.assert_array_equal(pixels_of(open_labelled(str(tmp_path / "x.jsonl")))[..., 0], GREY)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            (GREY.astype(int) - 128).tolist(),
            r"x.parquet\[0\], column 'image', holds integers from -1\d\d to 1\d\d",
        ),
        ((GREY.astype(int) * 257).tolist(), r"holds integers from \d+ to \d+; pixels must be 0 to 255"),
        ((GREY > 128).astype(int).tolist(), "holds only 0 and 1, but pixels are 0 to 255"),
        (COLOUR.transpose(0, 3, 1, 2).tolist(), r"holds lists of shape \(3, 5, 6\)"),
        ([[[1, 2], [3]]] * 3, r"holds lists of shape \(2,\)"),
        (GREY.reshape(3, -1).tolist(), r"1 image columns|0 image columns|cannot be read as images"),
        ([1, 2, 3], r"0 image columns \(image, label\)"),
    ],
)
def test_lists_that_are_no_pixels(tmp_path, image, message):
    with pytest.raises(InputError, match=message):
        open_labelled(write(tmp_path / "x.parquet", image))


class TestPaths:
    def images(self, *paths):
        return pa.array([{"bytes": None, "path": path} for path in paths], IMAGE_TYPE)

    @pytest.fixture(autouse=True)
    def elsewhere(self, tmp_path, monkeypatch):
        """The working folder holds other images of the same names."""
        for place, grey in (("elsewhere", 200), ("d", 0), ("d/data", 100)):
            (tmp_path / place).mkdir()
            for i in range(2):
                (tmp_path / place / f"{i}.png").write_bytes(png(grey + i))
        monkeypatch.chdir(tmp_path / "elsewhere")

    def test_begin_at_the_folder_of_the_file(self, tmp_path):
        path = write(tmp_path / "d" / "x.parquet", self.images("0.png", "1.png", "data/0.png"))
        source = open_labelled(path)
        assert greys(source) == [0, 1, 100]
        assert source.ids == ("0.png", "1.png", "data/0.png")
        assert greys(open_labelled(os.path.relpath(path))) == [0, 1, 100]

    def test_in_a_folder_of_files(self, tmp_path):
        write(tmp_path / "d" / "data" / "0.parquet", self.images("0.png", "1.png"))
        write(tmp_path / "d" / "1.parquet", self.images("0.png"))
        assert sorted(greys(open_labelled(str(tmp_path / "d")))) == [0, 100, 101]

    def test_that_are_absolute_or_leave_the_folder(self, tmp_path):
        paths = (str(tmp_path / "d" / "0.png"), "../elsewhere/1.png")
        source = open_labelled(write(tmp_path / "d" / "x.parquet", self.images(*paths)))
        assert greys(source) == [0, 201]
        assert source.ids == ("0.png", "../elsewhere/1.png")

    def test_as_text(self, tmp_path):
        source = open_labelled(write(tmp_path / "d" / "x.parquet", pa.array(["0.png", "data/1.png"])))
        assert greys(source) == [0, 101]

    def test_that_are_not_there(self, tmp_path):
        source = open_labelled(write(tmp_path / "d" / "x.parquet", self.images("0.png", "7.png", None, "")))
        with pytest.raises(InputError, match=r"d/7.png: there is no such file"):
            load_image(source.read(1))
        assert source.read(2) == source.read(3) == b""

    @pytest.mark.parametrize("url", ["https://x.org/0.png", "s3://x/0.png", "file:///0.png", "data:image/png,x"])
    def test_that_are_urls(self, tmp_path, url):
        with pytest.raises(InputError, match=r"x.parquet\[1\] has a URL instead of a path, .*: download"):
            open_labelled(write(tmp_path / "d" / "x.parquet", pa.array(["0.png", url])))
        source = open_labelled(write(tmp_path / "d" / "x.parquet", self.images("0.png", url)))
        with pytest.raises(InputError):
            load_image(source.read(1))

    def test_an_image_that_is_there_counts_more_than_its_path(self, tmp_path):
        image = pa.array([{"bytes": png(7), "path": "0.png"}, {"bytes": b"", "path": "1.png"}, None], IMAGE_TYPE)
        source = open_labelled(write(tmp_path / "d" / "x.parquet", image))
        assert [source.read(i) for i in range(3)] == [png(7), b"", b""]


class TestFilesThatDoNotBelongTogether:
    def test_columns(self, tmp_path):
        table(tmp_path / "d" / "0.parquet", ["a", "b"])
        pq.write_table(pa.table({"image": ["0.png"], "class": ["a"]}), tmp_path / "d" / "1.parquet")
        with pytest.raises(InputError, match=r"1.parquet has the columns image, class, and .* has image, label"):
            open_labelled(str(tmp_path / "d"))

    def test_types(self, tmp_path):
        table(tmp_path / "d" / "0.parquet", ["a", "b"])
        table(tmp_path / "d" / "1.parquet", [0, 1])
        with pytest.raises(InputError, match=r"column 'label' of .*1.parquet holds int64, and that of .* holds string"):
            open_labelled(str(tmp_path / "d"))

    def test_class_names(self, tmp_path):
        (tmp_path / "d").mkdir()
        for i, names in enumerate((["cat", "dog"], ["dog", "cat"])):
            features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
            columns = {"image": [{"bytes": png(0), "path": None}], "label": [0]}
            datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "d" / f"{i}.parquet")
        with pytest.raises(InputError, match=r"classes of column 'label' of .*1.parquet have other names than in"):
            open_labelled(str(tmp_path / "d"))

    def test_widths_do(self, tmp_path):
        table(tmp_path / "d" / "0.parquet", pa.array(["a", "b"]))
        table(tmp_path / "d" / "1.parquet", pa.array(["b", "c"], pa.large_string()))
        assert open_labelled(str(tmp_path / "d")).labels == (0, 1, 1, 2)


@pytest.mark.parametrize("cut", [3, 100, -3])
def test_a_file_that_is_cut_off(tmp_path, cut):
    path = tmp_path / "x.parquet"
    table(path, ["a", "b"])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"x.parquet cannot be read as Parquet: "):
        open_labelled(str(path))


def test_a_column_twice(tmp_path):
    columns = pa.Table.from_arrays([pa.array([png(0)]), pa.array(["a"]), pa.array(["b"])], ["image", "label", "label"])
    pq.write_table(columns, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="has the column 'label' twice"):
        open_labelled(str(tmp_path / "x.parquet"))


def test_an_image_of_16_bits_in_a_file_is_one(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 257 * 7, np.uint16)).save(file, "PNG")
    assert greys(open_labelled(write(tmp_path / "x.parquet", pa.array([file.getvalue()])))) == [7]
