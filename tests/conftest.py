import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # set before huggingface_hub is imported; no test uses the network
os.environ.pop("COLUMNS", None)  # set in workers of pytest-xdist, and read once, when rich is imported

from functools import cache

import datasets
import pytest
import rounding
import torch
from builders import BUILDERS
from commands import TRAIN, save
from hypothesis import HealthCheck, settings
from text_builders import TEXT_BUILDERS

from diffusion_classifier import cli
from diffusion_classifier.denoisers import tuning

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # discard batch sizes that tests measure
torch.set_num_threads(1)  # the networks are tiny, and threads of parallel tests would compete

# No deadlines, because the time of an example depends more on the machine than on the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

if os.environ.get("OTHER_BITS"):
    rounding.install()


def pytest_collection_modifyitems(items):
    """Run files with slow tests first, so that no processor waits at the end for the one that got the last of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _no_batch_size_is_measured():
    """Skip the search for the batch size, which takes seconds per network.

    It still runs in test_batching and in processes that tests start.
    """
    with pytest.MonkeyPatch.context() as m:
        m.setattr(tuning, "measure", lambda *_: tuning.Tuning(64))
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Return a function that maps the name of a builder to its pipeline folder, built once.

    The folder is shared: copy it before you change it.
    """

    @cache
    def build(name):
        folder = tmp_path_factory.mktemp(name)
        (BUILDERS | TEXT_BUILDERS)[name](folder)
        return folder

    return build


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Return a folder with three class folders of ten images each."""
    folder = tmp_path_factory.mktemp("photos")
    for name, grey in (("dark", 60), ("grey", 128), ("light", 190)):
        for i in range(10):
            save(folder / name / f"{i}.png", grey, i)
    return folder


@pytest.fixture(scope="session")
def model(photos, tmp_path_factory):
    """Return the folder of a class-conditional model that `train` wrote."""
    out = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as m:
        m.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        m.setattr(sys, "argv", ["x", "train", str(photos), "--out", str(out), "--epochs", "1", *TRAIN])
        with pytest.raises(SystemExit) as e:
            cli.main()
    assert e.value.code == 0
    return out


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Return a function that runs the command in this process and returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def call(*arguments):
        capsys.readouterr()  # discard the output of fixtures
        monkeypatch.setattr(sys, "argv", ["diffusion-classifier", *map(str, arguments)])
        with pytest.raises(SystemExit) as e:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return e.value.code, captured.out, captured.err

    return call
