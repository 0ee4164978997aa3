import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caption_files import ROWS, winoground, write_rows
from image_files import greys, png
from PIL import Image

from diffusion_classifier.data.captioned import CaptionedSource, open_captioned, open_winoground
from diffusion_classifier.data.images import load_image
from diffusion_classifier.errors import InputError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class TestWinoground:
    def test_a_copy_of_its_schema(self, tmp_path):
        source = open_winoground(data=str(winoground(tmp_path / "test.parquet")))
        assert source.paired
        assert source.ids == ("0/0", "0/1", "1/0", "1/1", "2/0", "2/1")
        assert source.captions[2:4] == (("a 1 on b", "b on a 1"),) * 2
        assert source.truth == (0, 1, 0, 1, 0, 1)
        assert source.tags == ("object", "object", "relation", "relation", "both", "both")
        assert greys(source) == [0, 1, 10, 11, 20, 21]

    def test_a_folder_of_such_files(self, tmp_path):
        winoground(tmp_path / "data" / "test-00000-of-00001.parquet")
        assert len(open_winoground(data=str(tmp_path / "data"))) == 6

    def test_columns_that_are_missing(self, tmp_path):
        file = winoground(tmp_path / "test.parquet", without=["caption_1"])
        with pytest.raises(InputError, match="has no column 'caption_1'; it has id, image_0, image_1, caption_0, tag"):
            open_winoground(data=str(file))

    @pytest.mark.parametrize("column", ["caption_0", "caption_1", "collapsed_tag"])
    @pytest.mark.parametrize("value", [None, "", " "])
    def test_a_text_that_is_missing(self, tmp_path, column, value):
        table = pq.read_table(winoground(tmp_path / "test.parquet"))
        texts = table[column].to_pylist()
        new = pa.array([texts[0], value, texts[2]])
        pq.write_table(table.set_column(table.schema.get_field_index(column), column, new), tmp_path / "w.parquet")
        with pytest.raises(InputError, match=rf"\[1\] has no (caption|tag): column '{column}' holds {value!r}"):
            open_winoground(data=str(tmp_path / "w.parquet"))

    def test_a_licence_that_was_not_accepted(self, monkeypatch):
        def refuse(*_, **__):
            raise datasets.exceptions.DatasetNotFoundError(
                "Dataset 'facebook/winoground' is a gated dataset on the Hub. You must be authenticated to access it."
            )

        monkeypatch.setattr(datasets, "load_dataset", refuse)
        with pytest.raises(InputError) as e:
            open_winoground()
        assert str(e.value) == (
            "facebook/winoground is for those who accepted its licence: do so at "
            "https://huggingface.co/datasets/facebook/winoground, and log in on this machine by `hf auth login`"
        )

    def test_what_the_hub_made_of_a_program_is_read(self, monkeypatch, tmp_path):
        table = datasets.Dataset.from_parquet(str(winoground(tmp_path / "test.parquet")))

        def load(source, split, revision=None):
            assert (source, split) == ("facebook/winoground", "test")
            if revision is None:
                raise RuntimeError("Dataset scripts are no longer supported, but found winoground.py")
            assert revision == "refs/convert/parquet"
            return table

        monkeypatch.setattr(datasets, "load_dataset", load)
        assert len(open_winoground()) == 6


@pytest.fixture
def folder(tmp_path):
    """Images 0.png, 1.png and 2.png, of the greys 0, 10, 20, in a folder of their own."""
    for i in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{i}.png").write_bytes(png(10 * i))
    return tmp_path


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_files_of_ones_own(folder, suffix):
    source = open_captioned(data=write_rows(folder / f"d.{suffix}", ROWS), tag_column="kind")
    assert source.ids == ("0", "1", "2")
    assert source.captions == tuple((f"a cat {i}", f"a dog {i}") for i in range(3))
    assert (source.truth, source.tags, source.paired) == ((0, 0, 0), ("swap",) * 3, False)
    assert greys(source) == [0, 10, 20]
    elsewhere = open_captioned(data=write_rows(folder / f"e.{suffix}", ROWS))
    assert elsewhere.tags == ()


def test_embedded_images(tmp_path):
    kinds = {"image": datasets.Image(), "true_caption": datasets.Value("string")}
    columns = {"image": [{"bytes": png(7), "path": None}], "true_caption": ["a"], "false_captions": [["b", "c", "b"]]}
    features = datasets.Features(**kinds, false_captions=datasets.List(datasets.Value("string")))
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "d.parquet")
    source = open_captioned(data=str(tmp_path / "d.parquet"))
    assert source.captions == (("a", "b", "c"),)
    assert greys(source) == [7]
    with pytest.raises(InputError, match=r"column 'image' of .* holds images instead of captions"):
        open_captioned(data=str(tmp_path / "d.parquet"), false_column=["image"])


def test_columns_of_other_names(folder):
    rows = [
        {"x": "0.png", "good": "a", "bad": ["b", "c"], "worse": "d"},
        {"x": "1.png", "good": "a", "bad": ["b"], "worse": ""},
    ]
    source = open_captioned(
        data=write_rows(folder / "d.json", rows), images=str(folder / "images"), image_column="x",
        caption_column="good", false_column=["bad", "worse"],
    )  # fmt: skip
    assert source.captions == (("a", "b", "c", "d"), ("a", "b"))
    assert greys(source) == [0, 10]


def test_sugarcrepes_own(folder):
    content = {str(i): {"filename": f"{i}.png", "caption": "a", "negative_caption": f"b {i}"} for i in (2, 0)}
    (folder / "add_att.json").write_text(json.dumps(content))
    source = open_captioned(data=str(folder / "add_att.json"), images=str(folder / "images"))
    assert source.ids == ("2", "0")
    assert source.captions == (("a", "b 2"), ("a", "b 0"))
    assert greys(source) == [20, 0]


def test_aros_own_is_cropped_to_its_box(tmp_path):
    pixels = np.arange(120, dtype=np.uint8).reshape(10, 12)
    Image.fromarray(pixels).save(tmp_path / "7.png")
    row = {
        "image_id": 7, "image_path": "7.png", "true_caption": "the cat is on the mat",
        "false_caption": "the mat is on the cat", "bbox_x": 3, "bbox_y": 2, "bbox_w": 5, "bbox_h": 4,
        "relation_name": "on",
    }  # fmt: skip
    gone = row | {"image_path": "8.png"}
    source = open_captioned(data=write_rows(tmp_path / "visual_genome_relation.json", [row, gone]))
    assert source.tags == ("on", "on")
    found = np.asarray(load_image(source.read(0)).image)[..., 0]
    np.testing.assert_array_equal(found, pixels[2:6, 3:8])
    assert str(source.read(1)).endswith("8.png")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": None}, r"d.json\[0\] has captions that are no text, but \[None, 'b'\]"),
        ({"caption": "b "}, "image 0 has the caption 'b' twice, true and false"),
        ({"negative_caption": []}, "image 0 has fewer than two captions"),
        ({"negative_caption": " "}, "image 0 has an empty caption"),
        ({"caption": " "}, "image 0 has an empty caption"),
        ({"negative_caption": ""}, "image 0 has fewer than two captions"),
        (dict.fromkeys(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), "x"), "has no box of numbers"),
        (dict.fromkeys(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), 0), "has a box without room"),
        ({"caption": float("nan")}, r"d.json\[0\] has captions that are no text, but \[nan, 'b'\]"),
        ({"caption": 3}, r"no text, but \[3, 'b'\]"),
        ({"negative_caption": 3}, r"no text, but \['a', 3\]"),
        ({"negative_caption": ["b", 3]}, r"no text, but \['a', 'b', 3\]"),
        ({"negative_caption": None}, "image 0 has fewer than two captions"),
        ({"negative_caption": "['b', 'c']"}, r"a caption of .*d.json\[0\] is a list written as text, .* save the data"),
        ({"negative_caption": "['b' 'c']"}, "is a list written as text"),
        ({"negative_caption": "('b',)"}, "is a list written as text"),
        ({"negative_caption": '["b"]'}, "is a list written as text"),
        ({"negative_caption": "[]"}, "is a list written as text"),
        ({"tag": None}, r"d.json\[0\] has no tag: column 'tag' holds None"),
        ({"tag": ""}, r"has no tag: column 'tag' holds ''"),
        ({"tag": 1.5}, r"has no text in column 'tag', but 1.5"),
        *(
            ({"bbox_x": 0, "bbox_y": 0, "bbox_w": 2, "bbox_h": 2} | box, message)
            for box, message in (
                ({"bbox_w": float("inf")}, "has no box of numbers, but .*inf"),
                ({"bbox_x": float("nan")}, "has no box of numbers"),
                ({"bbox_x": None}, "has no box of numbers"),
                ({"bbox_x": True}, "has no box of numbers"),
                ({"bbox_y": [1]}, "has no box of numbers"),
                ({"bbox_w": 10**400}, "has no box of numbers"),
                ({"bbox_w": "1e400"}, "has no box of numbers"),
                ({"bbox_w": 1e300}, "has a box larger than any image"),
                ({"bbox_x": -1e9}, "has a box larger than any image"),
                ({"bbox_w": 60_000, "bbox_h": 60_000}, "has a box larger than any image"),
                ({"bbox_w": -2}, "has a box without room"),
                ({"bbox_h": 0.5}, "has a box without room"),
                ({"bbox_x": -2}, "has a box outside of its image"),
                ({"bbox_y": -7}, "has a box outside of its image"),
            )
        ),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, row, message):
    good = {"image": "0.png", "caption": "a", "negative_caption": "b"}
    with pytest.raises(InputError, match=message):
        open_captioned(data=write_rows(tmp_path / "d.json", [good | row]))


def test_a_caption_in_brackets_is_one(folder):
    rows = [row | {"caption": "[a cat] on a mat", "negative_caption": "(a dog)"} for row in ROWS]
    assert open_captioned(data=write_rows(folder / "d.json", rows)).captions[0] == ("[a cat] on a mat", "(a dog)")


def test_a_box_beyond_the_image_fails_alone(folder):
    boxes = [(0, 0, 2, 2), (4, 0, 2, 2), (3, 3, 9, 9)]
    names = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
    rows = [row | dict(zip(names, box, strict=True)) for row, box in zip(ROWS, boxes, strict=True)]
    source = open_captioned(data=write_rows(folder / "d.json", rows))
    assert [load_image(source.read(i)).image.size for i in (0, 2)] == [(2, 2), (9, 9)]
    with pytest.raises(InputError, match="is 0 × 0"):
        load_image(source.read(1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption,negative_caption\n0.png,a cat, sitting,a dog\n", "line 2 of .* has 4 fields"),
        ("image;caption;negative_caption\n0.png;a;b\n", "separates fields with semicolons"),
        ("image,caption,caption\n0.png,a,b\n", "has the column 'caption' twice"),
        ("image,caption,negative_caption\n0.png,café,b\n".encode("latin-1"), "is not in UTF-8"),
        ("image,caption,negative_captions\n0.png,a,\"['b', 'c']\"\n", "is a list written as text"),
        ("image,caption,negative_caption\n0.png,,b\n", r"\[0\] \(line 2\) has captions that are no text, but \[None"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "d.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        open_captioned(data=str(tmp_path / "d.csv"))


def test_csv_with_a_byte_order_mark_and_quotes(folder):
    content = 'image,caption,negative_caption\r\nimages/1.png,"a cat, a ""big"" one\nhere",None\r\n'
    (folder / "D.CSV").write_bytes(content.encode("utf-8-sig"))
    source = open_captioned(data=str(folder / "D.CSV"))
    assert source.captions == (('a cat, a "big" one\nhere', "None"),)
    assert greys(source) == [10]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("{", {}, "cannot be read as JSON: .* line 1 column 2"),
        ("[]", {}, "must hold a list of objects"),
        ("[1]", {}, "must hold a list of objects"),
        ('[{"image": "x", "caption": "a"}]', {}, "no column of false captions, .*; it has image, caption: name"),
        ('[{"image": "x", "text": "a"}]', {}, "no column of true captions, such as true_caption or caption; it has"),
        ('[{"caption": "a", "false_caption": "b"}]', {}, "no column of images"),
        ('[{"image": "x", "caption": "a"}]', {"false_column": ["b"]}, "no column 'b'; it has image, caption"),
        ('[{"image": "x", "caption": "a"}]', {"image_column": "b"}, "no column 'b'; it has image, caption"),
        ("[]", {"images": "nowhere"}, "there is no folder nowhere"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(tmp_path, content, options, message):
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(InputError, match=message):
        open_captioned(data=str(tmp_path / "d.json"), **options)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_a_file_that_is_not_there(suffix):
    with pytest.raises(InputError, match=f"there is no file data/mine.{suffix}"):
        open_captioned(data=f"data/mine.{suffix}")


def test_no_file():
    with pytest.raises(InputError, match="give the file of them by --data"):
        open_captioned()


PAIR = {"ids": ("7/0", "7/1"), "captions": (("a", "b"), ("b", "a")), "truth": (0, 0), "paired": True}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ids": ("7/0", "7/0")}, "different names"),
        ({"ids": ("7/0", "8/1")}, "are named as 17/0 and 17/1; got 7/0"),
        ({"ids": ("7/1", "7/0")}, "are named as 17/0 and 17/1"),
        ({"truth": (0, 1)}, "images 7/0 and 7/1 are no pair"),
        ({"captions": (("a", "b"), ("b", "c"))}, "are no pair"),
        ({"captions": (("a", "b"), ("b", "a", "c"))}, "are no pair"),
        ({"captions": (("a", "b"), ("b",))}, "image 7/1 has fewer than two"),
        ({"truth": (0, 2)}, "none that is true"),
        ({"truth": (0,)}, "as many captions, truths and tags as images"),
        ({"tags": ("x",)}, "as many captions, truths and tags as images"),
        (dict.fromkeys(("ids", "captions", "truth"), ()), "and an image"),
        ({"ids": ("7/0",), "captions": (("a", "b"),), "truth": (0,)}, "come in pairs, and there are 1"),
    ],
)
def test_sources_that_are_none(changed, message):
    CaptionedSource("mine", read=png, **PAIR)
    with pytest.raises(InputError, match=f"mine: .*{message}"):
        CaptionedSource("mine", read=png, **(PAIR | changed))


def test_the_fingerprint_tells_what_was_asked():
    source = CaptionedSource("mine", read=png, **PAIR)
    assert source.fingerprint() == CaptionedSource("yours", read=str, **PAIR).fingerprint()
    for changed in (
        {"ids": ("8/0", "8/1")}, {"captions": (("a", "c"), ("c", "a"))}, {"captions": (("b", "a"), ("a", "b"))},
        {"truth": (1, 1)}, {"tags": ("x", "y")}, {"paired": False},
    ):  # fmt: skip
        assert CaptionedSource("mine", read=png, **(PAIR | changed)).fingerprint() != source.fingerprint()
