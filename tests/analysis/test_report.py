import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from evaluations import NAMES, ask, pixels, source
from gaussians import gaussian
from PIL import Image

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.analysis.report import write_report
from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.store import read_rows

MARKED = ("cat", "<dog>", "door")


def images(names=MARKED):
    return source(12, names=names, read=lambda i: b"broken" if i == 4 else pixels(i, 4))


def run(folder, **options):
    clf = DiffusionClassifier(gaussian(3, size=4, class_names=MARKED), batch_size=16)
    options = {"strategy": "fixed:3", "store_errors": True, "model": "a & b", "command": "evaluate x > y"} | options
    for _ in ask(clf, images(), folder, **options):
        pass
    return read_rows(folder).to_pylist()


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.pictures, self.text, self.elsewhere = [], "", []
        self.feed(text)

    def handle_starttag(self, _, attributes):
        for name, value in attributes:
            if name in ("src", "href"):
                kind, _, content = value.partition(",")
                if kind != "data:image/png;base64":
                    self.elsewhere.append(value)
                    continue
                self.pictures.append(np.asarray(Image.open(BytesIO(base64.b64decode(content))).convert("RGB")))

    def handle_data(self, data):
        self.text += data


def test_one_page_that_needs_nothing_else(tmp_path):
    rows = run(tmp_path / "run")
    write_report(tmp_path / "run", tmp_path / "r.html", images())
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert page.elsewhere == []
    assert "http" not in text
    figures, shown = page.pictures[:4], page.pictures[4:]
    assert all(figure.std() > 5 for figure in figures)
    done = [row for row in rows if row["status"] == "done"]
    for right in (True, False):
        chosen = [row for row in done if (row["prediction"] == row["truth"]) == right]
        for row in sorted(chosen, key=lambda row: -max(row["posterior"]))[:12]:
            assert (shown.pop(0) == pixels(int(row["id"].removesuffix(".png")), 4)).all()
            assert f"{row['prediction']} {max(row['posterior']):.1%}" in page.text
    assert shown == []
    accuracy = np.mean([row["prediction"] == row["truth"] for row in done])
    assert re.search(rf"accuracy\s*{accuracy:.1%}", page.text)
    for words in ("a & b", "<dog>", "diffusion-classifier evaluate x > y", "11 of 12; 1 failed"):
        assert words in page.text


def test_without_images_or_errors(tmp_path):
    run(tmp_path / "run", store_errors=False)
    write_report(tmp_path / "run", tmp_path / "r.html")
    assert len(Page((tmp_path / "r.html").read_text()).pictures) == 3


def test_of_a_single_image_which_has_no_intervals(tmp_path):
    run(tmp_path / "run", positions=[0])
    write_report(tmp_path / "run", tmp_path / "r.html")
    assert len(Page((tmp_path / "r.html").read_text()).pictures) == 3


def test_times_are_compared_where_every_image_has_them(tmp_path):
    run(tmp_path / "run", strategy="staged:1,3/2,1")
    write_report(tmp_path / "run", tmp_path / "r.html")
    assert len(Page((tmp_path / "r.html").read_text()).pictures) == 3


def test_mistakes(tmp_path):
    run(tmp_path / "run")
    with pytest.raises(InputError, match=r"photos is not the data set of .*, which was photos"):
        write_report(tmp_path / "run", tmp_path / "r.html", images(NAMES))
    with pytest.raises(InputError, match="cannot be written"):
        write_report(tmp_path / "run", tmp_path / "no" / "r.html")
    run(tmp_path / "none", positions=[4])
    with pytest.raises(InputError, match=r"no image of .* is done yet"):
        write_report(tmp_path / "none", tmp_path / "r.html")
