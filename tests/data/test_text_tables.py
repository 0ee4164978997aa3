"""CSV, tab-separated values, JSON and JSON Lines."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import AMBIGUOUS_WORDS

from diffusion_classifier.data.text_tables import read_names, read_rows, rows_as_table
from diffusion_classifier.errors import InputError

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\ufeff", exclude_categories=("Cs",)))


def rows_of(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(tmp_path / name)[0]


@pytest.mark.parametrize("name", ["l.csv", "l.tsv"])
def test_a_field_is_text_as_written(tmp_path, name):
    between = "," if name == "l.csv" else "\t"
    content = "".join(f"{i}.png{between}{word}\n" for i, word in enumerate(AMBIGUOUS_WORDS))
    rows = rows_of(tmp_path, name, f"image{between}label\n{content}")
    assert [row["label"] for row in rows] == AMBIGUOUS_WORDS


@given(st.lists(st.lists(texts, min_size=2, max_size=2), min_size=1))
def test_what_csv_wrote_is_read(tmp_path_factory, rows):
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([("a", "b"), *rows])
    (path := tmp_path_factory.mktemp("t") / "x.csv").write_bytes(file.getvalue().encode())
    assert [[row["a"] or "", row["b"] or ""] for row in read_rows(path)[0]] == rows


@given(st.lists(st.dictionaries(texts, texts, min_size=1), min_size=1), st.booleans())
def test_what_json_wrote_is_read(tmp_path_factory, rows, as_lines):
    path = tmp_path_factory.mktemp("t") / ("x.jsonl" if as_lines else "x.json")
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes((lines if as_lines else json.dumps(rows)).encode())
    assert read_rows(path)[0] == rows


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_and_all_ends_of_lines(tmp_path, newline):
    content = b"\xef\xbb\xbf" + newline.join(["image,label", "0.png,bag", "", '1.png,"a, b"', ""]).encode()
    assert rows_of(tmp_path, "l.csv", content) == [
        {"image": "0.png", "label": "bag"}, {"image": "1.png", "label": "a, b"},
    ]  # fmt: skip
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbf" + newline.join(["bag", "coat", "", ""]).encode())
    assert read_names(tmp_path / "names.txt") == ("bag", "coat")


def test_a_line_ends_at_a_line_feed_alone(tmp_path):
    """And not at the other characters by which `str.splitlines` parts a text."""
    odd = "a\x0b\x0c\x1c\x85\u2028b"
    assert rows_of(tmp_path, "l.csv", f"image,label\n0.png,{odd}\n")[0]["label"] == odd
    assert rows_of(tmp_path, "l.jsonl", json.dumps({"label": odd}, ensure_ascii=False))[0]["label"] == odd
    (tmp_path / "names.txt").write_text(f"{odd}\nc\n")
    assert read_names(tmp_path / "names.txt") == (odd, "c")


def test_a_quoted_line_feed(tmp_path):
    (tmp_path / "l.csv").write_text('image,label\n"0\n.png",bag\n1.png,coat\n')
    rows, lines = read_rows(tmp_path / "l.csv")
    assert [row["image"] for row in rows] == ["0\n.png", "1.png"]
    assert lines == [3, 4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "image,caption,false\n0.png,a, b,c\n", "line 2 of .*x.csv has 4 fields, but its header has 3: put"),
        ("x.csv", "image,label\n0.png\n", "line 2 of .* has 1 fields, but its header has 2"),
        ("x.csv", 'image,label\n0.png,"bag\n1.png,coat\n', "line 3 of .* cannot be read as CSV: unexpected"),
        ("x.csv", 'image,label\n0.png,"a" b\n', "line 2 of .* cannot be read as CSV"),
        ("x.csv", "image,label,label\n0.png,a,b\n", "has the column 'label' twice"),
        ("x.csv", "", "is empty: it has no header"),
        ("x.csv", "image,label\n", "is empty: it has a header and no rows"),
        ("x.csv", "image;label\n0.png;bag\n", "separates fields with semicolons: save it with commas$"),
        ("x.csv", "image\tlabel\n0.png\tbag\n", "separates fields with tabs: save it with commas, or rename"),
        ("x.csv", "image|label\n0.png|bag\n", "separates fields with vertical bars: save it with commas"),
        ("x.tsv", "image;label\n0.png;bag\n", "separates fields with semicolons"),
        ("x.csv", "image,label\n0.png,café\n".encode("latin-1"), r"is not in UTF-8 \(byte 0xe9 in line 2\): save"),
        ("x.csv", "image,label\n0.png,bag\n".encode("utf-16"), "is in UTF-16: save it as UTF-8"),
        ("x.csv", "image,label\n0.png,bag\n".encode("utf-16-le"), "is not a text file: it contains zero bytes"),
        ("x.csv", b"\x1f\x8b\x08", "is compressed: unpack it first"),
        ("x.json", "[{]", "cannot be read as JSON: .* line 1 column 3"),
        ("x.json", '[{"a": 1, "a": 2}]', "the name 'a' occurs twice"),
        ("x.jsonl", '{"a": 1}\n{"a": \n', "line 2 of .*x.jsonl cannot be read as JSON"),
        ("x.jsonl", '{"a": 1}\n[1]\n', "must hold a list of objects"),
        ("x.json", "[]", "must hold a list of objects"),
        ("x.json", "3", "must hold a list of objects"),
        ("x.jsonl", "\n", "must hold a list of objects"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        rows_of(tmp_path, name, content)


def test_json_of_objects_by_id_and_lines_by_the_other_suffix(tmp_path):
    by_id = rows_of(tmp_path, "x.json", '{"7": {"a": "b"}, "3": {"a": "c"}}')
    assert by_id == [{"id": "7", "a": "b"}, {"id": "3", "a": "c"}]
    assert rows_of(tmp_path, "x.json", '{"a": "b"}\n{"a": "c"}\n') == [{"a": "b"}, {"a": "c"}]


def test_a_row_is_named_by_its_line(tmp_path):
    table = rows_as_table("x.csv", "text", [{"a": "b"}, {"a": None}], [2, 4], tmp_path)
    assert table.row(1) == "x.csv[1] (line 4)"
    assert table.values("a") == ["b", None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Bag\n\nCoat\n", "line 2 of .*names.txt is empty"),
        (b"\nBag\n", "line 1 of .* is empty"),
        (b"Bag\n \t\nCoat", "line 2 of .* is empty"),
        (b"\n\n", "names.txt is empty"),
        (b"", "names.txt is empty"),
        ("café\n".encode("latin-1"), r"is not in UTF-8 \(byte 0xe9 in line 1\)"),
    ],
)
def test_names_that_are_none(tmp_path, content, message):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_names(tmp_path / "names.txt")
