import os

import pytest

from diffusion_classifier import InputError
from diffusion_classifier.files import write_durably
from diffusion_classifier.runs.error_tables import table_writer


@pytest.fixture
def pipe(tmp_path):
    """What is a name in a folder, but no file."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_what_is_written_takes_the_place_of_a_file(tmp_path):
    (tmp_path / "a").write_text("a long old text")
    write_durably(tmp_path / "a", "é")
    assert (tmp_path / "a").read_bytes() == "é".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_what_is_written_goes_through_a_device(pipe):
    end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        write_durably(pipe, "text")
        assert os.read(end, 9) == b"text"
    finally:
        os.close(end)
    assert pipe.is_fifo()


def test_tables_do_not_take_the_place_of_a_device(pipe):
    with pytest.raises(InputError, match="pipe is a folder or a device"), table_writer(pipe, ["a", "b"], {}):
        pass
    assert pipe.is_fifo()
