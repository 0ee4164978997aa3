import subprocess
import sys

import pytest

import diffusion_classifier


def test_all_public_names_are_listed_and_can_be_imported():
    assert set(diffusion_classifier.__all__) <= set(dir(diffusion_classifier))
    for name in diffusion_classifier.__all__:
        assert getattr(diffusion_classifier, name).__name__ == name


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Classifier'"):
        diffusion_classifier.Classifier  # noqa: B018


def test_importing_the_package_does_not_import_torch():
    program = "import sys, diffusion_classifier; dir(diffusion_classifier); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
