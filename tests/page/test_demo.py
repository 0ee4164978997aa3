import pytest
from commands import error


@pytest.fixture
def captions_run(call, tmp_path):
    options = ("--model", "scenes/contrastive", "--limit", 4)
    assert call("evaluate", "scenes-winoground", *options, "--out", tmp_path / "captions")[0] == 0
    return tmp_path / "captions"


def test_what_cannot_be_served_is_said_before_the_page_is(call, captions_run, tmp_path):
    for options, message in (
        (("--contrastive", "fashion"), "fashion is no contrastive model that can be found"),
        (("--run", captions_run), "this page is for runs over classes"),
        (("--run", tmp_path), "is not the folder of a run"),
        (("--host", "203.0.113.1"), "the page cannot be served at 203.0.113.1"),
    ):
        code, _, err = call("demo", "--model", "fashion", "--device", "cpu", *options)
        assert (code, message in error(err)) == (2, True), err
