"""Compare watching a search with the search itself."""

import threading

import pytest
import torch
from gaussians import gaussian

from diffusion_classifier import DiffusionClassifier, InputError
from diffusion_classifier.app.html_parts import NUM_BARS, bars, dropped, leads, status
from diffusion_classifier.app.live_search import watch
from diffusion_classifier.data.fashion import load_sample


@pytest.fixture(scope="module")
def classifier():
    return DiffusionClassifier.from_pretrained("fashion", batch_size=16, dtype="float32")


def test_each_step_is_what_a_search_of_that_many_draws_knows_and_the_last_is_the_answer(classifier):
    image = load_sample(7)[6].image
    steps = list(watch(classifier, image, strategy="fixed:1"))
    (answer,) = classifier.classify([image], strategy="fixed:1")
    assert len(steps) == 2
    for step in steps:
        assert torch.equal(step.errors, answer.errors)
        assert torch.equal(step.posterior, answer.posterior)
        assert step.num_evaluations == 10
    steps = list(watch(classifier, image, strategy="sequential:12/0.1", seed=3))
    (answer,) = classifier.classify([image], strategy="sequential:12/0.1", seed=3)
    assert torch.equal(steps[-1].errors.nan_to_num(-1), answer.errors.nan_to_num(-1))
    assert torch.equal(steps[-1].t, answer.t)
    for n, step in enumerate(steps[:-1], 1):
        seen = (~step.errors.isnan()).any(0)
        assert seen[:n].all()
        assert torch.equal(step.t, answer.t)
        known = ~step.errors.isnan()
        assert torch.equal(step.errors[known], answer.errors[known])  # what was known stays
        assert step.num_evaluations == int(known.sum())
        assert abs(float(step.posterior.sum()) - 1) < 1e-9
        assert len(dropped(step)) >= len(dropped(steps[max(0, n - 2)]))  # nobody comes back


def test_a_search_that_nobody_watches_ends(classifier, monkeypatch):
    calls, closed, predict = [], threading.Event(), classifier.denoiser.predict_noise

    def counted(*arguments):
        calls.append(1)
        assert len(calls) < 10 or closed.wait(60)  # else a slow machine may be done before the iterator is closed
        return predict(*arguments)

    monkeypatch.setattr(classifier.denoiser, "predict_noise", counted)
    before = threading.active_count()
    steps = watch(classifier, load_sample(1)[0].image, ["Shirt", "T-shirt/top"], strategy="sequential:1000/1e-9")
    next(steps)
    steps.close()
    closed.set()
    for thread in threading.enumerate():
        if thread.name.startswith("search"):
            thread.join(60)
    assert threading.active_count() == before
    assert len(calls) < 20  # of 125


def test_classes_of_one_name_are_told_apart():
    twins = DiffusionClassifier(gaussian(class_names=("crane", "heron", "crane")), batch_size=8)
    *_, answer = watch(twins, torch.rand(3, 2, 2), strategy="fixed:2")
    assert answer.class_names == ("crane (0)", "heron", "crane (2)")


def test_a_class_is_out_when_it_has_seen_fewer_draws_not_when_its_share_is_small():
    sure = DiffusionClassifier(gaussian(), batch_size=8)
    (result,) = sure.classify([torch.rand(3, 2, 2)], strategy="fixed:8", temperature=1e-9)
    assert [p > 1e-299 for p in sorted(result.posterior.tolist())] == [False, False, True]
    assert dropped(result) == set()
    assert "0.0%" in bars(result.scores, dropped(result))


def test_what_cannot_be_watched_is_refused(classifier, tmp_path):
    broken = tmp_path / "x.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    for image, names, options, told in (
        (broken, None, {}, "x.png"),
        (load_sample(1)[0].image, ["Shirt", "Hat"], {}, "Hat"),
        (load_sample(1)[0].image, None, {"strategy": "fixed:0"}, "1 draw"),
    ):
        with pytest.raises(InputError, match=told):
            list(watch(classifier, image, names, **options))


def test_what_is_shown(classifier):
    (result,) = classifier.classify([load_sample(1)[0].image], strategy="sequential:8/0.2")
    shown = bars(result.scores, dropped(result), title="<b>")
    assert shown.count("<meter") == 10
    assert shown.count(">out<") == len(dropped(result))
    assert "<b>" not in shown
    assert shown.index(f">{result.label}<") < min(
        shown.index(f">{n}<") for n in result.class_names if n != result.label
    )
    many = bars({f"{i} & <i>": 1 / 30 for i in range(30)})
    assert "and 10 more" in many
    assert many.count("<li") == NUM_BARS
    assert "<i>" not in many
    frame, winner = leads(result), result.class_names.index(result.label)
    above = [e - result.errors[winner] for k, e in enumerate(result.errors) if k != winner]
    most = max(above, key=lambda e: (int((~e.isnan()).sum()), -float(e.nanmean())))
    order = result.t.argsort()
    assert list(frame["t"]) == sorted(frame["t"])
    assert torch.allclose(torch.tensor(list(frame["lead"])).float(), most[order][~most[order].isnan()])
    assert f"<strong>{result.label}</strong>" in status(result, done=True)
    assert "labels remain" in status(result, done=False)
    assert status(result, True, ["first of 2 frames"]).endswith("first of 2 frames")
