"""Labels are text as written, or numbers; none is renamed, merged or exchanged without a word."""

import re

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import AMBIGUOUS_WORDS, png, table

from diffusion_classifier.data.labelled import open_labelled
from diffusion_classifier.errors import InputError


def opened(tmp_path, labels, **options):
    return open_labelled(table(tmp_path / "x.parquet", labels), **options)


def names_of(source):
    return [source.label(i) for i in range(len(source))]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_words_that_look_like_something_else(tmp_path, suffix):
    words = [word for word in AMBIGUOUS_WORDS if word == word.strip()]
    path = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        table(path, words)
    elif suffix == ".csv":
        path.write_text("image,label\n" + "".join(f"{i}.png,{word}\n" for i, word in enumerate(words)))
    else:
        path.write_text("".join(f'{{"image": "{i}.png", "label": "{word}"}}\n' for i, word in enumerate(words)))
    source = open_labelled(str(path))
    assert names_of(source) == words
    assert len(source.class_names) == len(words)
    assert all("differ in capitals only, and are two classes" in note for note in source.notes)  # True and true


letters = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(st.lists(letters.filter(lambda text: text[0] not in "[({-"), min_size=1, max_size=8))
def test_every_text_is_a_class_of_its_own(tmp_path_factory, words):
    path = tmp_path_factory.mktemp("t") / "x.parquet"
    source = open_labelled(table(path, words))
    assert names_of(source) == words
    assert set(source.class_names) == set(words)


def test_numbers_in_text_are_in_the_order_of_numbers(tmp_path):
    """Class names that are given in numeric order then fit."""
    path = tmp_path / "l.csv"
    path.write_text("image,label\n" + "".join(f"{i}.png,{i}\n" for i in range(12)))
    source = open_labelled(str(path), class_names=list("abcdefghijkl"))
    assert names_of(source) == list("abcdefghijkl")
    path.write_text("image,label\n" + "".join(f"{i}.png,{i:02}\n" for i in (*range(12), 100)))
    source = open_labelled(str(path))
    assert source.class_names == (*(f"{i:02}" for i in range(12)), "100")
    assert names_of(open_labelled(str(path), class_names=list("abcdefghijklm"))) == list("abcdefghijklm")


def test_numbers_that_are_written_in_two_ways(tmp_path):
    assert opened(tmp_path, ["01", "1", "2"]).class_names == ("01", "1", "2")
    with pytest.raises(InputError, match="labels with the same number, such as 01 and 1"):
        opened(tmp_path, ["01", "1", "2"], class_names=["a", "b", "c"])


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([b"cat", b"dog"]),
        pa.array([b"cat", b"dog"], pa.large_binary()),
        pa.array([b"cat", b"dog"], pa.binary(3)),
        pa.array([b"cat", b"dog"], pa.binary_view()),
        pa.array(["cat", "dog"], pa.large_string()),
        pa.array(["cat", "dog"], pa.string_view()),
        pa.array(["cat", "dog"]).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array(["dog", "cat", "cow"], pa.large_string())),
    ],
    ids=lambda array: str(array.type),
)
def test_types_of_text(tmp_path, labels):
    source = opened(tmp_path, labels)
    assert (source.class_names, source.labels) == (("cat", "dog"), (0, 1))


@pytest.mark.parametrize("type_", [pa.int8(), pa.uint8(), pa.int64(), pa.uint64()], ids=str)
def test_types_of_numbers(tmp_path, type_):
    source = opened(tmp_path, pa.array([10, 2], type_))
    assert (source.class_names, source.labels) == (("2", "10"), (1, 0))


def test_spaces_and_unicode_forms(tmp_path):
    source = opened(tmp_path, [" cat", "dog", "cafe\u0301", "\ufeffowl", "a\u00a0"])
    assert source.class_names == ("a", "caf\xe9", "cat", "dog", "owl")
    assert any("4 labels of" in note and "without surrounding spaces" in note for note in source.notes)


@pytest.mark.parametrize("two", [("cat", "cat "), ("caf\xe9", "cafe\u0301"), ("\tcat", " cat")])
def test_labels_that_look_alike(tmp_path, two):
    with pytest.raises(InputError, match=r"two labels of .* look the same, .* use one spelling"):
        opened(tmp_path, list(two))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array([0.0, 1.0]), "column 'label' of .* does not hold labels, .* but double, such as 0.0"),
        (pa.array([1.0, None, 0.0]), "does not hold labels, .* but double, such as 1.0: save whole numbers as such"),
        (pa.array([True, False]), "does not hold labels, .* but bool, such as True"),
        (pa.array([["a"], ["a", "b"]]), r"does not hold labels, .* such as \['a'\]: save each label as one text"),
        (pa.array([{"a": 1}, {"a": 2}]), "does not hold labels"),
        (pa.array([1, 2], pa.date32()), "does not hold labels"),
        (pa.array(["['a', 'b']", "['a']"]), r"x.parquet\[0\], column 'label' is a list written as text"),
        (pa.array(["[]", "b"]), "is a list written as text"),
        (pa.array([b"caf\xe9", b"b"]), r"x.parquet\[0\], column 'label' is not text in UTF-8: b'caf.xe9'"),
    ],
    ids=lambda given: str(given.type) if isinstance(given, pa.Array) else "",
)
def test_what_is_no_label(tmp_path, labels, message):
    with pytest.raises(InputError, match=message):
        opened(tmp_path, labels)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"label": 1}\n{"label": "b"}', "but text and whole numbers, such as 1"),
        ('{"label": true}\n{"label": false}', "but true or false"),
        ('{"label": 1.0}\n{"label": 0.0}', "but fractions"),
        ('{"label": NaN}\n{"label": 0}', "but fractions and whole numbers"),
        ('{"label": ["a"]}\n{"label": ["b"]}', "but lists"),
        ('{"label": {"a": 1}}\n{"label": {"a": 2}}', "but objects"),
    ],
)
def test_what_is_no_label_in_json(tmp_path, rows, message):
    (tmp_path / "x.jsonl").write_text(rows.replace('{"label"', '{"image": "0.png", "label"'))
    with pytest.raises(InputError, match=f"does not hold labels, .*{message}"):
        open_labelled(str(tmp_path / "x.jsonl"))


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ([0, -1, 1], "-1"), ([0, -100, 1], "-100"), ([0, None, 1], "None"), (["a", None, "b"], "None"),
        (["a", "", "b"], "''"), (["a", " ", "b"], "' '"), (["0", "-1", "1"], "'-1'"),
    ],
)  # fmt: skip
def test_a_missing_label_is_no_class(tmp_path, labels, shown):
    with pytest.raises(InputError, match=rf"x.parquet\[1\] has no label \({shown} in column 'label'\)$"):
        opened(tmp_path, labels)
    source = opened(tmp_path, labels, allow_incomplete=True)
    assert (source.ids, source.labels) == (("0", "2"), (0, 1))
    assert source.read(1) == png(2)
    with pytest.raises(InputError, match=r"\[1\] has no label .* and neither have 2 others of 5"):
        opened(tmp_path, [*labels, labels[1], labels[1]])


def test_a_missing_label_of_csv_is_named_by_its_line(tmp_path):
    (tmp_path / "l.csv").write_text("image,label\n0.png,a\n1.png,\n2.png,b\n")
    with pytest.raises(InputError, match=r"l.csv\[1\] \(line 3\) has no label"):
        open_labelled(str(tmp_path / "l.csv"))


@pytest.mark.parametrize("labels", [[-1, -1], pa.nulls(2), pa.nulls(2, pa.string()), ["", ""], ["-1", "-1"]])
def test_hidden_labels(tmp_path, labels):
    with pytest.raises(InputError, match=r"the labels of .* are hidden: column 'label' holds .* only; take another"):
        opened(tmp_path, labels)
    source = opened(tmp_path, labels, class_names=["a", "b", "c"])
    assert (source.labels, source.class_names) == ((-1, -1), ("a", "b", "c"))
    assert any("are hidden" in note and "used without labels" in note for note in source.notes)


def test_labels_that_differ_in_capitals_only_are_two_classes_with_a_note(tmp_path):
    source = opened(tmp_path, ["cat", "Cat", "dog", "cat"])
    assert (source.class_names, source.labels) == (("Cat", "cat", "dog"), (1, 0, 2, 1))
    assert [note for note in source.notes if "'Cat' and 'cat' differ in capitals only, and are two" in note]


def test_hidden_labels_of_declared_classes(tmp_path):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["no", "yes"]))
    columns = {"image": [{"bytes": png(0), "path": None}] * 2, "label": [-1, -1]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"are hidden: column 'label' holds (-1|None) only"):
        open_labelled(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    ("labels", "given", "found", "told"),
    [
        ([0, 2], "abc", "ac", "1 of the class names have no image"),
        ([0, 1], "ab", "ab", None),
        ([1, 2], "ab", "ab", r"labels of .* are 1, 2 …: label 1 is named 'a'"),
        ([2, 9, 10], "abc", "abc", r"labels of .* are 2, 9, 10 …: label 2 is named 'a'"),
        (["0", "2"], "abc", "ac", "1 of the class names"),
        (["b", "c"], "xcb", "bc", None),  # the same words, and one more
    ],
)
def test_names_that_are_given(tmp_path, labels, given, found, told):
    source = opened(tmp_path, labels, class_names=list(given))
    assert source.class_names == tuple(given)
    assert names_of(source) == list(found)
    assert len(source.notes) == (told is not None)
    assert told is None or re.search(told, source.notes[0])


@pytest.mark.parametrize(("labels", "given"), [([0, 1], "10"), ([0, 2], "201"), ([5, 6], "65"), (["0", "1"], "120")])
def test_names_that_are_other_labels(tmp_path, labels, given):
    with pytest.raises(InputError, match=r"are labels of .* in another order: label (0|5) would be named (1|2|6)$"):
        opened(tmp_path, labels, class_names=list(given))


@pytest.mark.parametrize("given", [("0", "2"), ("0", "1", "2")])
def test_names_that_are_the_labels(tmp_path, given):
    assert names_of(opened(tmp_path, [0, 2], class_names=given)) == ["0", "2"]


@pytest.mark.parametrize("labels", [[0, 1, 5], ["0", "1", "5"]])
def test_fewer_names_than_labels(tmp_path, labels):
    with pytest.raises(InputError, match=r"2 class names were given for the 3 classes of .* are 0 to 5: .* or 6"):
        opened(tmp_path, labels, class_names=["a", "b"])


class TestChoiceOfTheColumn:
    def test_the_usual_name_beats_a_declared_column(self, tmp_path):
        features = datasets.Features(
            image=datasets.Image(), label=datasets.Value("string"), camera=datasets.ClassLabel(names=["x", "y"]),
            mask=datasets.Image(),
        )  # fmt: skip
        one, two = ({"bytes": png(i), "path": None} for i in (1, 2))
        columns = {"image": [one], "label": ["bag"], "camera": [0], "mask": [two]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "x.parquet")
        source = open_labelled(str(tmp_path / "x.parquet"))
        assert (source.class_names, source.read(0)) == (("bag",), png(1))
        assert open_labelled(str(tmp_path / "x.parquet"), label_column="camera").class_names == ("x", "y")

    @pytest.mark.parametrize("also", ["camera", "cls"])
    def test_two_that_may_be_meant(self, tmp_path, also):
        features = datasets.Features(
            {"image": datasets.Image(), "class": datasets.Value("string"), also: datasets.ClassLabel(names=["x"])}
        )
        columns = {"image": [{"bytes": png(1), "path": None}], "class": ["bag"], also: [0]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "x.parquet")
        if also == "cls":  # of a usual name and declared
            assert open_labelled(str(tmp_path / "x.parquet")).class_names == ("x",)
            return
        with pytest.raises(InputError, match=r"2 label columns \(camera, class\); name one with --label-column"):
            open_labelled(str(tmp_path / "x.parquet"))

    def test_names_beside_numbers_are_not_taken_unasked(self, tmp_path):
        path = table(tmp_path / "x.parquet", [1, 0], label_text=pa.array(["dog", "cat"]))
        source = open_labelled(path)
        assert source.class_names == ("0", "1")
        assert any("use --label-column label_text for the names" in n for n in source.notes)
        assert open_labelled(path, label_column="label_text").class_names == ("cat", "dog")


class TestNamesBesideTheImages:
    def test_of_a_folder_above_that_is_another_data_set(self, tmp_path):
        (tmp_path / "classnames.txt").write_text("of\nanother\nset\n")
        table(tmp_path / "mine" / "x.parquet", [0, 1])
        assert open_labelled(str(tmp_path / "mine")).class_names == ("0", "1")
        assert open_labelled(str(tmp_path / "mine" / "x.parquet")).class_names == ("0", "1")

    @pytest.mark.parametrize("split", ["test", "Train", "val"])
    def test_of_a_folder_above_a_split(self, tmp_path, split, monkeypatch):
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "classnames.txt").write_bytes("café\r\nbag\r\ncoat\r\n".encode("utf-8-sig"))
        table(tmp_path / "d" / split / "x.parquet", [0, 1])
        for opened in (f"d/{split}", f"d/{split}/x.parquet"):
            source = open_labelled(str(tmp_path / opened))
            assert source.class_names == ("café", "bag", "coat")
            assert source.notes == (
                f"class names are those in {tmp_path / 'd' / 'classnames.txt'}",
                "1 class has no images and can be predicted all the same: coat",
            )
        monkeypatch.chdir(tmp_path / "d" / split)
        assert open_labelled("x.parquet").class_names == ("café", "bag", "coat")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"Bag\n\nCoat\nDress\n", "line 2 of .*classnames.txt is empty"),
            ("café\nbag\n".encode("latin-1"), "classnames.txt is not in UTF-8"),
            (b"Bag\n", r"x.parquet\[1\] has the label 2, and there are names for 1 classes"),
        ],
    )
    def test_that_do_not_fit(self, tmp_path, content, message):
        (tmp_path / "classnames.txt").write_bytes(content)
        with pytest.raises(InputError, match=message):
            opened(tmp_path, [0, 2])

    @pytest.mark.parametrize("template", ["a photo", "a {c} of {c}", "a {c} {x}", "{"])
    def test_templates_without_a_place_for_the_name(self, tmp_path, template):
        (tmp_path / "zeroshot_classification_templates.txt").write_text(f"a {{c}}\n{template}\n")
        with pytest.raises(
            InputError, match=r"line 2 of zeroshot_classification_templates.txt .* must hold \{c\} once"
        ):
            opened(tmp_path, [0, 2])


def test_an_image_that_is_named_twice(tmp_path):
    (tmp_path / "l.csv").write_text("image,label\n0.png,a\n0.png,b\n1.png,b\n")
    source = open_labelled(str(tmp_path / "l.csv"))
    assert source.ids == ("0", "1", "2")
    assert source.notes == (f"{tmp_path / 'l.csv'} names an image twice, such as '0.png': positions are used as ids",)
