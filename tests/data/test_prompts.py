import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_classifier.data.prompts import fill_template, parse_labels, split_labels
from diffusion_classifier.errors import InputError


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("cat,dog", ["cat", "dog"]),
        (" tabby cat ,\tdog", ["tabby cat", "dog"]),
        (["cat ", "dog, or hound"], ["cat", "dog, or hound"]),
        (("猫", "犬"), ["猫", "犬"]),
    ],
)
def test_parse_labels(labels, expected):
    assert parse_labels(labels) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"a bag, small",a dress', ["a bag, small", "a dress"]),
        ('a dress , "a bag, small" ', ["a dress", "a bag, small"]),
        ('"say ""cheese""",cat', ['say "cheese"', "cat"]),
        ('12" disc,cat', ['12" disc', "cat"]),
        ("butcher's knife,colt's foot,dogs'", ["butcher's knife", "colt's foot", "dogs'"]),
        ("'90s car,cat", ["'90s car", "cat"]),
        ("binder (closed),F-16A/B,[none],a {b}", ["binder (closed)", "F-16A/B", "[none]", "a {b}"]),
        ("(a), (b)", ["(a)", "(b)"]),
        ("cat,dog\n", ["cat", "dog"]),
        ("猫,犬", ["猫", "犬"]),
    ],
)
def test_a_line_of_labels_is_a_line_of_csv(text, expected):
    assert split_labels(text) == parse_labels(text) == expected


@given(st.lists(st.from_regex(r"[a-z]([a-z ,\"/()']*[a-z])?", fullmatch=True), min_size=1))
def test_what_a_csv_writer_writes_is_read_back(names):
    line = io.StringIO()
    csv.writer(line).writerow(names)
    assert split_labels(line.getvalue()) == names


@given(st.lists(st.from_regex("[a-z]+", fullmatch=True), min_size=2))
def test_a_list_that_a_program_wrote_as_text_is_refused(names):
    for written in (str(names), json.dumps(names), str(tuple(names)), str(set(names)), f" {names} ", ", ".join(names)):
        if written == ", ".join(names):
            assert split_labels(written) == names
        else:
            with pytest.raises(InputError, match="without brackets around them"):
                split_labels(written)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"a bag, small,a dress', "double quotes do not enclose whole labels"),
        ('"a bag, small"s,a dress', "double quotes do not enclose whole labels"),
        ("'a bag, small',a dress", "only double quotes can enclose a label, where it has a comma; got 'a bag in"),
        ("'cat','dog'", "only double quotes can enclose a label, where it has a comma; got 'cat' in"),
        ("“a bag, small”,a dress", "only double quotes"),
        ("„a bag, small“,a dress", "only double quotes"),
        ("cat\ndog", "it has several lines"),
    ],
)
def test_other_quotes_and_lines_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_labels(text)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("", "label 1 of 1 is empty"),
        ("cat,,dog", "label 2 of 3 is empty"),
        ("cat,dog,", "label 3 of 3 is empty"),
        (["cat", "  "], "label 2 of 2 is empty"),
        ([], r"at least two labels .* got none"),
        ("cat", r"at least two labels .* got 'cat'"),
        ("cat,dog,Cat", "'Cat' is given twice: it differs from 'cat' in capitals only"),
        (["cat", " cat"], "'cat' is given twice"),
        (["cat", 3], "labels are words; got 3"),
        (["cat", None], "labels are words; got None"),
    ],
)
def test_unusable_labels_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        parse_labels(labels)


@given(st.text(), st.text(), st.lists(st.text()))
def test_the_name_stands_where_the_braces_are(before, after, names):
    """Whatever else is in the template or in the names, braces in names included."""
    before, after = (text.replace("{", "").replace("}", "") for text in (before, after))
    assert fill_template(before + "{}" + after, names) == [f"{before}{name}{after}" for name in names]


@pytest.mark.parametrize("template", ["", "a photo", "{} and {}", "a {name}", "{0}", "{{}}", "{ }", "{}}", "{{}", "}{"])
def test_unusable_templates_are_refused(template):
    with pytest.raises(InputError, match=r"must hold \{\} exactly once"):
        fill_template(template, ["cat"])
