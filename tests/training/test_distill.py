import json
import re
import shutil

import numpy as np
import pytest
import torch
from commands import error, save
from PIL import Image, ImageOps
from transformers import AutoModelForImageClassification, pipeline

from diffusion_classifier.baselines.supervised import Supervised
from diffusion_classifier.data.images import load_image
from diffusion_classifier.data.labelled import open_labelled
from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.store import read_rows
from diffusion_classifier.training import supervised
from diffusion_classifier.training.distill import teaching_images

NAMES = "dark,grey,light"


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    monkeypatch.setitem(supervised._RESNETS, "resnet-18", supervised._RESNETS["resnet-18"] | sizes)
    monkeypatch.setattr(supervised, "_STATISTICS", 3)


@pytest.fixture
def unlabelled(tmp_path):
    """Save thirty images in one folder, without their classes."""
    for i in range(30):
        save(tmp_path / "any" / f"{i:02d}.png", (60, 128, 190)[i % 3], i)
    return tmp_path / "any"


@pytest.fixture
def evaluate(call, model, tmp_path):
    def evaluate(task, out, *arguments):
        options = ("--model", model, "--strategy", "fixed:2", "--batch-size", 8)
        return call("evaluate", task, "--out", tmp_path / out, *options, *arguments)

    return evaluate


class TestWithoutLabels:
    def test_a_run(self, evaluate, unlabelled, tmp_path):
        code, out, _ = evaluate(unlabelled, "run", "--class-names", NAMES)
        assert (code, "30 of 30" in out) == (0, True)
        rows = read_rows(tmp_path / "run").to_pylist()
        assert {row["truth"] for row in rows} == {None}
        assert {row["id"] for row in rows} == {f"{i:02d}.png" for i in range(30)}
        assert {row["prediction"] for row in rows} <= set(NAMES.split(","))
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert (summary["accuracy"], summary["num_done"], summary["num_evaluations"]) == (None, 30, 6)

    def test_answers_are_those_of_a_labelled_run(self, evaluate, photos, tmp_path):
        evaluate(photos, "with")
        evaluate(photos / "grey", "without", "--class-names", NAMES)
        rows = {row["id"]: row["posterior"] for row in read_rows(tmp_path / "with").to_pylist()}
        for row in read_rows(tmp_path / "without").to_pylist():
            np.testing.assert_allclose(row["posterior"], rows[f"grey/{row['id']}"], rtol=1e-4)

    def test_what_needs_labels_says_so(self, call, evaluate, unlabelled, tmp_path):
        few = ("--class-names", NAMES, "--limit", 6, "--store-errors")
        evaluate(unlabelled, "run", *few)
        evaluate(unlabelled, "other", *few, "--loss", "l1")
        run, other = tmp_path / "run", tmp_path / "other"
        for command in (("report", run, "-o", tmp_path / "x.html"), ("robustness", run, other)):
            code, _, err = call(*command)
            assert (code, f"the images of {run} have no labels" in error(err)) == (2, True)
        where = ("--class-names", NAMES, "--out", tmp_path / "m", "--size", 8)
        for command in (("train", unlabelled), ("baseline", "supervised", unlabelled)):
            code, _, err = call(*command, *where)
            assert (code, f"the images of {unlabelled} have no labels" in error(err)) == (2, True)
        code, out, _ = call("summarize", run, other)
        first, second = ([row["prediction"] for row in read_rows(f).to_pylist()] for f in (run, other))
        share = sum(a != b for a, b in zip(first, second, strict=True)) / 6
        assert (code, f"other prediction for {share:.1%}" in out) == (0, True)
        code, out, _ = call("rescore", run, "--out", tmp_path / "again", "--temperature", 2)
        assert (code, "other prediction for 0.0%" in out) == (0, True)

    def test_classes_must_be_named(self, evaluate, unlabelled):
        code, _, err = evaluate(unlabelled, "run")
        assert code == 2
        assert "of images whose classes are not known, say which they may be of, --class-names" in error(err)

    def test_a_table(self, tmp_path):
        save(tmp_path / "a.png", 60)
        (tmp_path / "t.csv").write_text("image\na.png\n")
        source = open_labelled(str(tmp_path / "t.csv"), class_names=("x", "y"))
        assert (source.labels, source.label(0), source.class_names) == ((-1,), None, ("x", "y"))


class TestTaught:
    def test_targets_are_the_posteriors(self, evaluate, unlabelled, tmp_path):
        evaluate(unlabelled, "run", "--class-names", NAMES, "--limit", 20)
        source = open_labelled(str(unlabelled), class_names=NAMES.split(","))
        found = teaching_images({tmp_path / "run": source})
        rows = {row["id"]: row["posterior"] for row in read_rows(tmp_path / "run").to_pylist()}
        assert (len(found), found.class_names) == (20, ("dark", "grey", "light"))
        for i, id_ in enumerate(sorted(rows)):
            torch.testing.assert_close(found.targets[i], torch.tensor(rows[id_]))
            pixels = np.asarray(load_image(unlabelled / id_).image)[..., 0]
            np.testing.assert_array_equal(found.images[i, 0], pixels)
        assert found.labels.tolist() == found.targets.argmax(1).tolist()
        training, held_out = found.split(5, seed=0)
        assert held_out.posteriors.shape == (5, 3)
        assert training.fingerprint() != training.__class__(training.images, training.labels, NAMES).fingerprint()

    def test_several_teachers_are_averaged_and_other_images_are_added(self, evaluate, photos, unlabelled, tmp_path):
        names = ("--class-names", NAMES)
        evaluate(unlabelled, "a", *names)
        evaluate(unlabelled, "b", *names, "--loss", "l1", "--limit", 15)
        evaluate(photos, "c")
        source = open_labelled(str(unlabelled), class_names=NAMES.split(","))
        folders = [tmp_path / name for name in "abc"]
        found = teaching_images(dict(zip(folders, [source, source, open_labelled(str(photos))], strict=True)))
        assert len(found) == 60
        a, b = ({row["id"]: np.array(row["posterior"]) for row in read_rows(f).to_pylist()} for f in folders[:2])
        for i, id_ in enumerate(source.ids):
            expected = (a[id_] + b[id_]) / 2 if id_ in b else a[id_]
            np.testing.assert_allclose(found.targets[i], expected, atol=1e-6)

    def test_other_images_of_the_same_names_are_others(self, evaluate, unlabelled, tmp_path):
        names = ("--class-names", NAMES)
        evaluate(unlabelled, "a", *names)
        shutil.copytree(unlabelled, tmp_path / "again")
        for file in (tmp_path / "again").iterdir():
            Image.open(file).transpose(Image.Transpose.ROTATE_180).save(file)
        evaluate(tmp_path / "again", "b", *names)
        sources = [
            open_labelled(str(folder), class_names=NAMES.split(",")) for folder in (unlabelled, tmp_path / "again")
        ]
        found = teaching_images(dict(zip((tmp_path / "a", tmp_path / "b"), sources, strict=True)))
        assert len(found) == 2 * len(sources[0])
        assert torch.equal(found.images[len(sources[0]) :], found.images[: len(sources[0])].flip(2, 3))

    def test_what_is_refused(self, evaluate, photos, unlabelled, tmp_path):
        names = ("--class-names", NAMES)
        evaluate(unlabelled, "run", *names)
        evaluate(unlabelled, "shifted", *names, "--shift", "contrast:1")
        evaluate(unlabelled, "other", "--class-names", "light,dark,grey")
        source, others = open_labelled(str(unlabelled), class_names=NAMES.split(",")), open_labelled(str(photos))
        with pytest.raises(InputError, match="were changed by contrast:1: a student is taught plain ones"):
            teaching_images({tmp_path / "shifted": source})
        with pytest.raises(InputError, match=r"photos\d* is not the data set of .*run, which was"):
            teaching_images({tmp_path / "run": others})
        with pytest.raises(InputError, match="other is over other classes than the run before it"):
            teaching_images({tmp_path / "run": source, tmp_path / "other": others})


class TestCommand:
    def test_a_student_answers_as_its_teacher(self, call, model, photos, unlabelled, tmp_path):
        call("baseline", "gaussian", photos, "--model", model, "--out", tmp_path / "teacher")
        call("evaluate", unlabelled, "--class-names", NAMES, "--model", tmp_path / "teacher", "--out", tmp_path / "run")
        few = ("--epochs", 30, "--batch-size", 8, "--warmup", 2, "--ema", 0.9, "--augment", "none", "--device", "cpu")
        code, out, err = call("distill", tmp_path / "run", "--out", tmp_path / "student", "--validation", 6, *few)
        assert (code, out) == (0, "")
        assert "24 training and 6 validation images of 3 classes" in err
        assert "validation agreement" in err
        student = Supervised.from_pretrained(tmp_path / "student", device="cpu")
        rows = read_rows(tmp_path / "run").to_pylist()
        answers = [student.logits(load_image(unlabelled / row["id"]).image).argmax() for row in rows]
        teacher = torch.tensor([row["posterior"] for row in rows]).argmax(1)
        assert float((torch.stack(answers) == teacher).float().mean()) >= 0.9
        card = (tmp_path / "student" / "README.md").read_text()
        assert "pipeline_tag: image-classification" in card
        assert "features model, on 30 images" in card
        assert "It was trained on 24" in card
        (edge,) = re.findall(r"\((\d+), \1\)\)  # the size of its training images", card)
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
        told = pipeline("image-classification", model=str(tmp_path / "student"))(ImageOps.fit(noise, (int(edge),) * 2))
        expected = dict(zip(student.class_names, student.logits(noise).softmax(0).tolist(), strict=True))
        assert {answer["label"]: answer["score"] for answer in told} == pytest.approx(expected, abs=1e-5)
        assert AutoModelForImageClassification.from_pretrained(tmp_path / "student").config.num_labels == 3

    def test_images_that_have_moved(self, call, evaluate, unlabelled, tmp_path):
        evaluate(unlabelled, "run", "--class-names", NAMES)
        moved = unlabelled.rename(tmp_path / "moved")
        few = ("--epochs", 1, "--batch-size", 8, "--device", "cpu", "--out", tmp_path / "student")
        code, _, err = call("distill", tmp_path / "run", *few)
        assert (code, str(unlabelled) in error(err)) == (2, True)
        code, _, _ = call("distill", tmp_path / "run", *few, "--images", moved, "--validation", 0)
        assert (code, "held-out" in (tmp_path / "student" / "README.md").read_text()) == (0, False)
