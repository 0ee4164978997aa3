from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluations import NAMES, ask, pixels, source
from gaussians import gaussian

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.rescoring import rescore
from diffusion_classifier.runs.spec import read_spec
from diffusion_classifier.runs.store import read_rows

NUM_IMAGES = 12


def run(folder, **options):
    clf = DiffusionClassifier(gaussian(3, size=4, class_names=NAMES), batch_size=16)
    images = source(NUM_IMAGES, read=lambda i: b"broken" if i == 4 else pixels(i, 4))
    for _ in ask(clf, images, folder, **{"strategy": "fixed:9", "store_errors": True, **options}):
        pass
    return {row["id"]: row for row in read_rows(folder).to_pylist()}


def rows(folder):
    return {row["id"]: row for row in read_rows(folder).to_pylist()}


@pytest.mark.parametrize("strategy", ["fixed:9", "staged:2,9/2,1", "sequential:9/0.2"])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"weights": (3.0, 0.0)}, {"weights": "uniform", "temperature": 4.0}, {"prior": (0.7, 0.2, 0.1)},
        {"temperature": 2.0, "prior": (1, 1, 8), "weights": lambda u: 1 - u},
    ],
)  # fmt: skip
def test_answers_are_those_of_the_network_read_that_way(tmp_path, strategy, options):
    """Where nothing depends on them on the way; else of what was left: see the plain loop below."""
    first = run(tmp_path / "first", strategy=strategy, weights=(1.0, 2.0))
    rescore(tmp_path / "first", tmp_path / "again", **options)
    found = rows(tmp_path / "again")
    assert found.keys() == first.keys()
    spec = read_spec(tmp_path / "again")
    w = np.array(spec.weights if spec.weights else (1.0, 1.0))
    for id_, row in first.items():
        if row["status"] == "failed":
            assert found[id_] == row
            continue
        errors = np.array(row["errors"])
        known = ~np.isnan(errors)
        at = np.interp(np.array(row["timesteps"]) / 1000, np.linspace(0, 1, len(w)), w)
        means = np.array(
            [np.average(e[k], weights=at[k]) if k.any() else np.inf for e, k in zip(errors, known, strict=True)]
        )
        logits = -48 * means / spec.temperature + np.log(spec.prior or (1, 1, 1))
        logits[known.sum(1) < known.sum(1).max()] = -np.inf
        p = np.exp(logits - logits.max())
        assert found[id_]["posterior"] == pytest.approx((p / p.sum()).tolist(), abs=1e-6)
        assert found[id_]["prediction"] == NAMES[int(np.argmax(logits))]
        assert {k: str(v) for k, v in found[id_].items() if k not in ("posterior", "prediction", "confidence")} == {
            k: str(v) for k, v in row.items() if k not in ("posterior", "prediction", "confidence")
        }


def test_equal_to_an_evaluation_with_these_settings(tmp_path):
    options = {"weights": (2.0, 0.5, 1.0), "temperature": 3.0, "prior": (0.5, 0.3, 0.2)}
    run(tmp_path / "first")
    rescore(tmp_path / "first", tmp_path / "again", **options)
    direct, found = run(tmp_path / "direct", **options), rows(tmp_path / "again")
    for id_, row in direct.items():
        assert found[id_]["prediction"] == row["prediction"]
        if row["status"] == "done":
            torch.testing.assert_close(torch.tensor(found[id_]["posterior"]), torch.tensor(row["posterior"]))
    assert read_spec(tmp_path / "again").identity() == read_spec(tmp_path / "direct").identity()


def test_by_another_loss_that_was_kept(tmp_path):
    options = {"temperature": 3.0, "weights": (2.0, 1.0)}
    run(tmp_path / "first", extra_losses=("l1", "huber"), **options)
    direct = run(tmp_path / "direct", loss="l1", **options)
    rescore(tmp_path / "first", tmp_path / "again", loss="l1")
    found = rows(tmp_path / "again")
    for id_, row in direct.items():
        assert found[id_]["prediction"] == row["prediction"]
        if row["status"] == "done":
            np.testing.assert_allclose(found[id_]["posterior"], row["posterior"], rtol=1e-5)
            np.testing.assert_allclose(found[id_]["errors"], row["errors"], rtol=1e-6)
    assert read_spec(tmp_path / "again").extra_losses == ("l2", "huber")
    rescore(tmp_path / "again", tmp_path / "back", loss="l2")  # nothing was lost on the way
    for id_, row in rows(tmp_path / "first").items():
        assert rows(tmp_path / "back")[id_]["errors"] == row["errors"]
    with pytest.raises(InputError, match=r"holds errors of the losses l2, l1, huber, not of 'l3'"):
        rescore(tmp_path / "first", tmp_path / "x", loss="l3")


def test_other_losses_under_a_search_that_prunes(tmp_path):
    first = run(tmp_path / "first", strategy="staged:2,9/2,1", extra_losses=("l1",))
    for row in first.values():
        if row["status"] == "done":
            (_, also), errors = row["extra_errors"][0], np.array(row["errors"])
            assert np.array_equal(np.isnan(also), np.isnan(errors))
            assert np.nanmax(np.abs(np.array(also) - np.sqrt(errors))) < 1  # of the same predictions


def test_mistakes(tmp_path):
    run(tmp_path / "first")
    run(tmp_path / "bare", store_errors=False)
    for folder, options, message in (
        ("bare", {}, "holds no errors, which `evaluate --store-errors` keeps"),
        ("none", {}, "is not the folder of a run"),
        ("first", {"temperature": 0}, "the temperature must be above 0"),
        ("first", {"prior": [1, 2]}, "the prior must hold 3 positive numbers"),
        ("first", {"weights": "no.json"}, "no.json cannot be read as weights"),
        ("first", {"weights": lambda u: (u > 0.9999).double()}, "whose weight is 0"),
    ):
        with pytest.raises(InputError, match=message):
            rescore(tmp_path / folder, tmp_path / "out", **options)
    with pytest.raises(InputError, match="holds a run of something else"):
        rescore(tmp_path / "first", tmp_path / "bare")


def test_again_into_a_folder_goes_on_and_repeats_nothing(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    run(first)
    for _ in range(2):
        rescore(first, again, temperature=2.0)
        assert len(read_rows(again)) == NUM_IMAGES
    one = rows(again)
    (again / "shards" / "1-of-1-000000.parquet").unlink()  # as if it had been killed before
    rescore(first, again, temperature=2.0)
    assert rows(again) == one
    with pytest.raises(InputError, match="choose another --out"):
        rescore(first, first)


def test_the_spec_tells_what_changed(tmp_path):
    run(tmp_path / "first")
    rescore(tmp_path / "first", tmp_path / "again", temperature=5.0)
    there, now = read_spec(tmp_path / "first"), read_spec(tmp_path / "again")
    assert now == replace(there, temperature=5.0, command=f"rescore {tmp_path / 'first'}")
