"""Ray on this machine: real workers, which are processes of their own."""

import os
from functools import partial

import evaluations
import numpy as np
import pytest

from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.distributed import Work, evaluate_distributed
from diffusion_classifier.runs.evaluation import evaluate
from diffusion_classifier.runs.evaluators import ClassEvaluator
from diffusion_classifier.runs.spec import read_spec
from diffusion_classifier.runs.store import read_rows

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
NAMES = ("cat", "dog", "door")
QUESTION = ClassEvaluator(store_errors=True, options={"strategy": "sequential:8/0.2"})


def images(count=20, die=None):
    """Opened by each worker for itself; with `die` a file's name, the worker that first reads image 7 is killed."""
    from diffusion_classifier.data.labelled import LabelledSource

    def read(i):
        if i == 7 and die is not None and not os.path.exists(die):
            open(die, "w").close()
            os.kill(os.getpid(), 9)
        return b"broken" if i == 4 else np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)

    labels = tuple(i % 3 for i in range(count))
    return LabelledSource("photos", NAMES, labels, tuple(f"{i}.png" for i in range(count)), read)


@pytest.fixture(scope="module", autouse=True)
def _ray():
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    path = [*map(os.path.dirname, (__file__, evaluations.__file__)), os.environ.get("PYTHONPATH", "")]
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, path))}},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def load(model_folder):
    return {"model": str(model_folder("class-unet")), "device": "cpu", "dtype": "float32", "batch_size": 7}


def rows(folder):
    return {row["id"]: str({k: v for k, v in row.items() if k != "seconds"}) for row in read_rows(folder).to_pylist()}


@pytest.fixture
def whole(load, tmp_path):
    """The run of one process."""
    from diffusion_classifier import DiffusionClassifier

    list(evaluate(DiffusionClassifier.from_pretrained(**load), images(), tmp_path / "whole", QUESTION))
    return rows(tmp_path / "whole")


def test_two_workers_find_what_one_process_finds_to_the_bit(load, whole, tmp_path):
    work = Work(images, load, QUESTION)
    told = []
    run = evaluate_distributed(
        work, images(), tmp_path / "run", num_workers=2, chunk=3, on_start=lambda *a: told.append(a)
    )
    assert len(list(run)) == 20
    assert told == [(0, 20, [])]
    assert rows(tmp_path / "run") == whole
    assert read_spec(tmp_path / "run").identity() == read_spec(tmp_path / "whole").identity()
    again = evaluate_distributed(work, images(), tmp_path / "run")
    assert [(row.id, row.status) for row in again] == [("4.png", "failed")]


def test_begun_by_one_process_and_gone_on_with_by_workers(load, whole, tmp_path):
    from diffusion_classifier import DiffusionClassifier

    run = evaluate(DiffusionClassifier.from_pretrained(**load), images(), tmp_path / "run", QUESTION)
    done = sum(next(run).done for _ in range(6))
    run.close()
    rest = list(evaluate_distributed(Work(images, load, QUESTION), images(), tmp_path / "run", chunk=4))
    assert len(rest) == 20 - done
    assert rows(tmp_path / "run") == whole


def test_the_images_of_a_worker_that_was_killed_go_to_another(load, whole, tmp_path):
    work = Work(partial(images, die=str(tmp_path / "died")), load, QUESTION)
    list(evaluate_distributed(work, images(), tmp_path / "run", chunk=3))
    assert (tmp_path / "died").exists()
    assert rows(tmp_path / "run") == whole


def captions():
    return evaluations.pairs(6)


def test_pairs_of_captions_too(model_folder, tmp_path):
    """Workers encode all captions of the run, whichever images they are given."""
    from diffusion_classifier import DiffusionClassifier
    from diffusion_classifier.runs.evaluators import CaptionEvaluator

    load = {"model": str(model_folder("sd-epsilon")), "device": "cpu", "dtype": "float32", "batch_size": 5}
    question = CaptionEvaluator(store_errors=True, options={"strategy": "fixed:3"})
    list(evaluate(DiffusionClassifier.from_pretrained(**load), captions(), tmp_path / "whole", question))
    work = Work(captions, load, question)
    list(evaluate_distributed(work, captions(), tmp_path / "run", chunk=3))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_mistakes(load, tmp_path):
    for options, message in (
        ({"num_workers": 0}, "the number of workers must be at least 1; got 0"),
        ({"num_workers": 3}, "3 workers of 1 CPU each need 3, and Ray has 2"),
        ({"gpus_per_worker": 1.0}, "1 workers of 1 GPU each need 1, and Ray has 0"),
    ):
        with pytest.raises(InputError, match=message):
            list(evaluate_distributed(Work(images, load, QUESTION), images(), tmp_path / "run", **options))
    strange = ClassEvaluator(options={"strategy": "foo"})
    with pytest.raises(InputError, match="strategy 'foo'"):
        list(evaluate_distributed(Work(images, load, strange), images(), tmp_path / "run"))
