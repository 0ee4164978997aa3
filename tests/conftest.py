import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test uses the network

from functools import cache

import pytest
import torch
from builders import BUILDERS
from text_builders import TEXT_BUILDERS

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # batch sizes that are measured here are not kept
torch.set_num_threads(1)  # networks here are tiny, and the threads of a busy machine wait for each other


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Name of a builder → folder of its pipeline, built once. To be read only: copy it before you change it."""

    @cache
    def build(name):
        folder = tmp_path_factory.mktemp(name)
        (BUILDERS | TEXT_BUILDERS)[name](folder)
        return folder

    return build
