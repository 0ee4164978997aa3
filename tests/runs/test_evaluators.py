"""Runs over captions, compared with the classifier asked about one image at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluations import PAIRS, pairs, pixels, single
from gaussians import gaussian
from tolerances import ERRORS as CLOSE
from tolerances import posteriors
from tolerances import scores as nats

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.data.captioned import CaptionedSource
from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.error_tables import read_tables
from diffusion_classifier.runs.evaluation import evaluate
from diffusion_classifier.runs.evaluators import CaptionEvaluator
from diffusion_classifier.runs.rescoring import rescore
from diffusion_classifier.runs.spec import read_spec
from diffusion_classifier.runs.store import Part, read_rows
from diffusion_classifier.runs.summary import compare, summarize


@pytest.fixture(scope="module")
def make(model_folder):
    def make(batch_size=5):
        folder = model_folder("sd-epsilon")
        return DiffusionClassifier.from_pretrained(folder, device="cpu", dtype="float32", batch_size=batch_size)

    return make


def ask(clf, source, folder, positions=None, part=None, **options):
    own = {
        k: options.pop(k)
        for k in ("unconditional", "store_errors", "extra_losses", "template", "average")
        if k in options
    }
    return evaluate(clf, source, folder, CaptionEvaluator(options=options, **own), positions=positions, part=part)


def rows(folder):
    """By id, without what a clock says."""
    return {row["id"]: {k: v for k, v in row.items() if k != "seconds"} for row in read_rows(folder).to_pylist()}


ERRORS = {"strategy": "fixed:5", "store_errors": True, "seed": 3}


def test_rows_are_what_the_classifier_says(make, tmp_path):
    list(ask(make(), single(), tmp_path / "run", extra_losses=("l1",), **ERRORS))
    found = rows(tmp_path / "run")
    for i, id_ in enumerate("wxyz"):
        row, captions = found[id_], single().captions[i]
        (alone,) = make().classify([pixels(i)], captions, strategy="fixed:5", seed=3)
        assert (row["truth"], row["prediction"]) == (captions[single().truth[i]], alone.label)
        assert (row["candidates"], row["tag"], row["match_scores"]) == (list(captions), single().tags[i], None)
        torch.testing.assert_close(torch.tensor(row["errors"]), alone.errors, **CLOSE)
        posterior = torch.tensor(row["posterior"], dtype=torch.float64)
        torch.testing.assert_close(posterior, alone.posterior, **posteriors(256))
        assert dict(row["extra_errors"]).keys() == {"l1"}
        assert row["num_evaluations"] == 5 * len(captions)
    spec = read_spec(tmp_path / "run")
    assert (spec.kind, spec.class_names, spec.unconditional) == ("captions", (), False)


def test_pairs_have_the_null_condition(make, tmp_path):
    list(ask(make(), pairs(), tmp_path / "run", **ERRORS))
    clf, found = make(), rows(tmp_path / "run")
    assert read_spec(tmp_path / "run").unconditional
    for i, id_ in enumerate(pairs().ids):
        captions = pairs().captions[i]
        t = [500, 250, 750, 125, 625]
        errors = clf.errors(pixels(i), captions, timesteps=t, seed=3, unconditional=True).double()
        torch.testing.assert_close(torch.tensor(found[id_]["errors"]), errors.float(), **CLOSE)
        means = errors.mean(1)
        np.testing.assert_allclose(found[id_]["match_scores"], 256 * (means[2] - means[:2]), **nats(256))
        assert found[id_]["prediction"] == captions[int(means[:2].argmin())]
        assert len(found[id_]["posterior"]) == 2
        assert found[id_]["timesteps"] == t


def test_the_scores_of_a_run_are_those_of_its_tables(make, tmp_path):
    list(ask(make(), pairs(8), tmp_path / "run", **ERRORS))
    found = rows(tmp_path / "run")
    hits = []
    for e in range(8):
        m = [np.array(found[f"{e}/{k}"]["errors"], np.float64).mean(1) for k in (0, 1)]
        text = m[0][0] < m[0][1] and m[1][1] < m[1][0]
        image = m[0][2] - m[0][0] > m[1][2] - m[1][0] and m[1][2] - m[1][1] > m[0][2] - m[0][1]
        hits.append((text, image, text and image))
    summary = summarize(tmp_path / "run")
    shares = summary.composition.overall.shares
    assert [shares[name][0] for name in ("text", "image", "group")] == pytest.approx(list(np.mean(hits, 0)))
    assert {tag: s.num_examples for tag, s in summary.composition.by_tag.items()} == {"object": 4, "relation": 4}
    assert summary.accuracy[0] == np.mean([row["prediction"] == row["truth"] for row in found.values()])
    assert "null condition" in summary.composition.note


@pytest.mark.parametrize("kind", [pairs, single])
@pytest.mark.parametrize("stops", [(1,), (2, 3)])
def test_broken_off_and_gone_on_with_is_the_same_to_the_bit(make, tmp_path, kind, stops):
    list(ask(make(), kind(), tmp_path / "whole", **ERRORS))
    done = 0
    for stop in stops:
        run = ask(make(), kind(), tmp_path / "run", **ERRORS)
        for _ in range(stop - done):
            next(run)
        run.close()
        done = stop
    list(ask(make(), kind(), tmp_path / "run", **ERRORS))
    whole, found = rows(tmp_path / "whole"), rows(tmp_path / "run")
    assert {i: str(row) for i, row in found.items()} == {i: str(whole[i]) for i in found}
    assert len(found) == len(whole)


def test_parts_make_the_whole(make, tmp_path):
    list(ask(make(), pairs(), tmp_path / "whole", **ERRORS))
    for i in range(2):
        list(ask(make(), pairs(), tmp_path / "run", part=Part(i, 2), **ERRORS))
    whole, found = rows(tmp_path / "whole"), rows(tmp_path / "run")
    assert {i: str(row) for i, row in found.items()} == {i: str(whole[i]) for i in found}
    assert len(found) == 2 * PAIRS


def test_an_image_that_is_missing_is_a_row_and_its_pair_does_not_count(make, tmp_path):
    list(ask(make(), pairs(read=lambda i: b"" if i == 3 else pixels(i)), tmp_path / "run", **ERRORS))
    found = rows(tmp_path / "run")
    assert (found["1/1"]["status"], found["1/1"]["candidates"]) == ("failed", ["a 1 on b", "b on a 1"])
    assert found["1/1"]["reason"]
    summary = summarize(tmp_path / "run")
    assert (summary.num_done, summary.num_failed, summary.composition.num_incomplete) == (5, 1, 1)
    assert summary.composition.overall.num_examples == 2


def test_the_strategy_and_the_null_condition(make, tmp_path):
    """By default the null condition is evaluated where that makes sense, and other strategies are refused with it."""
    for name, source, options, expected in (
        ("a", pairs(1), {}, ("fixed:64", True)),
        ("b", pairs(1), {"strategy": "sequential:8/0.2"}, ("sequential:8/0.2", False)),
        ("c", pairs(1), {"strategy": "fixed:4", "unconditional": False}, ("fixed:4", False)),
        ("d", pairs(1), {"strategy": "fixed:4", "timesteps": "random"}, ("fixed:4", False)),
        ("e", single(), {"strategy": "fixed:4", "unconditional": True}, ("fixed:4", True)),
        ("f", single(), {}, ("sequential:64/0.01", False)),
    ):
        list(ask(make(64), source, tmp_path / name, **options))
        spec = read_spec(tmp_path / name)
        assert (spec.strategy, spec.unconditional) == expected
    assert set(summarize(tmp_path / "b").composition.overall.shares) == {"text"}
    assert "--unconditional" in summarize(tmp_path / "b").composition.note
    for options in ({"strategy": "sequential:8/0.2"}, {"strategy": "fixed:4", "timesteps": "random"}):
        with pytest.raises(InputError, match="leave out --unconditional, or use fixed:DRAWS in place of"):
            next(ask(make(), pairs(), tmp_path / "refused", unconditional=True, **options))


def test_two_captions_that_the_model_cannot_tell_apart_are_a_tie(make, tmp_path):
    """The tokenizer has one case."""
    source = CaptionedSource("ties", ("0",), (("a dog", "A Dog"),), (0,), pixels)
    list(ask(make(), source, tmp_path / "run", **ERRORS))
    rescore(tmp_path / "run", tmp_path / "again", temperature=2.0)
    for name in ("run", "again"):
        assert rows(tmp_path / name)["0"]["prediction"] is None
        assert summarize(tmp_path / name).accuracy[0] == 0


@pytest.mark.parametrize("kind", [pairs, single])
def test_rescored_is_what_the_network_says_when_read_so(make, tmp_path, kind):
    weights = (0.0, 1.0, 3.0)
    list(ask(make(), kind(), tmp_path / "first", extra_losses=("l1",), **ERRORS))
    list(ask(make(), kind(), tmp_path / "second", loss="l1", weights=weights, temperature=3.0, **ERRORS))
    rescore(tmp_path / "first", tmp_path / "again", loss="l1", weights=weights, temperature=3.0)
    expected, found = rows(tmp_path / "second"), rows(tmp_path / "again")
    for id_, row in expected.items():
        assert found[id_]["prediction"] == row["prediction"]
        assert found[id_]["posterior"] == pytest.approx(row["posterior"], rel=1e-4)
        assert found[id_]["match_scores"] == (
            None if kind is single else pytest.approx(row["match_scores"], rel=1e-4, abs=1e-6)
        )
    with pytest.raises(InputError, match="a prior is of classes"):
        rescore(tmp_path / "first", tmp_path / "prior", prior=(1.0, 2.0))


def test_comparison_by_pairs_and_by_images(make, tmp_path):
    for name, kind in (("pairs", pairs), ("single", single)):
        for seed in (3, 4):
            list(ask(make(), kind(), tmp_path / f"{name}{seed}", **ERRORS | {"seed": seed}))
        found = compare(tmp_path / f"{name}3", tmp_path / f"{name}4")
        a, b = (rows(tmp_path / f"{name}{seed}") for seed in (3, 4))
        right = [{i: row["prediction"] == row["truth"] for i, row in run.items()} for run in (a, b)]
        if kind is pairs:
            right = [[run[f"{e}/0"] and run[f"{e}/1"] for e in range(PAIRS)] for run in right]
        else:
            right = [[run[i] for i in "wxyz"] for run in right]
        assert found.difference[0] == pytest.approx(np.mean(right[1]) - np.mean(right[0]))
        assert found.only_second == sum(y and not x for x, y in zip(*right, strict=True))
        assert (found.num_images, found.num_pairs) == ((6, PAIRS) if kind is pairs else (4, None))


def test_what_reads_classes_refuses(make, tmp_path):
    from diffusion_classifier.analysis.report import write_report

    list(ask(make(), single(), tmp_path / "run", **ERRORS))
    with pytest.raises(InputError, match=r"is for runs over classes, and the images of .* have captions of their own"):
        read_tables(tmp_path / "run")
    with pytest.raises(InputError, match="a report is for runs over classes"):
        write_report(tmp_path / "run", tmp_path / "report.html")


def test_another_question_in_the_same_folder_is_refused(make, tmp_path):
    list(ask(make(), pairs(), tmp_path / "run", **ERRORS))
    with pytest.raises(InputError, match="unconditional true there, false now"):
        next(ask(make(), pairs(), tmp_path / "run", unconditional=False, **ERRORS))
    with pytest.raises(InputError, match=r"data .* there"):
        next(ask(make(), replace(pairs(), tags=()), tmp_path / "run", **ERRORS))


def test_a_model_that_reads_no_text(tmp_path):
    clf = DiffusionClassifier(gaussian(4, size=16, class_names=["A Dog", "a cat", "a tree", "x"]), batch_size=8)
    with pytest.raises(InputError, match="single has captions, which this model does not read: it knows 4 classes"):
        next(ask(clf, single(), tmp_path / "run", strategy="fixed:4"))
    clf = DiffusionClassifier(gaussian(4, size=16, class_names=["A Dog", "a cat", "a tree", "The Moon"]), batch_size=8)
    found = list(ask(clf, single(), tmp_path / "run", strategy="fixed:4"))
    assert {row.id: len(row.posterior) for row in found} == {"w": 2, "x": 3, "y": 2, "z": 2}


def test_a_template_is_put_around_captions(make, tmp_path):
    around = replace(single(), captions=tuple(tuple(f"see {c}" for c in own) for own in single().captions))
    list(ask(make(), single(), tmp_path / "a", template="see {}", **ERRORS))
    list(ask(make(), around, tmp_path / "b", **ERRORS))
    a, b = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert [a[i]["errors"] for i in "wxyz"] == [b[i]["errors"] for i in "wxyz"]
