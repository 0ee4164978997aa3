import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_classifier.exceptions import InputError
from diffusion_classifier.prompts import fill_template, parse_labels


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
    ("labels", "message"),
    [
        ("", "label 1 of 1 is empty"),
        ("cat,,dog", "label 2 of 3 is empty"),
        ("cat,dog,", "label 3 of 3 is empty"),
        (["cat", "  "], "label 2 of 2 is empty"),
        ([], r"at least two labels .* got none"),
        ("cat", r"at least two labels .* got 'cat'"),
        ("cat,dog,Cat", "'Cat' is given twice"),
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
