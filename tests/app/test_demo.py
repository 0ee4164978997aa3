import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from commands import error

from diffusion_classifier.app.page import build_page, launch


@pytest.fixture
def captions_run(call, tmp_path):
    options = ("--model", "scenes/contrastive", "--limit", 4)
    assert call("evaluate", "scenes-winoground", *options, "--out", tmp_path / "captions")[0] == 0
    return tmp_path / "captions"


def test_what_cannot_be_served_is_said_before_the_page_is(call, captions_run, tmp_path):
    for options, message in (
        (("--contrastive", "fashion"), "fashion is not a contrastive model"),
        (("--run", captions_run), "this page is for runs over classes"),
        (("--run", tmp_path), "is not the folder of a run"),
        (("--host", "203.0.113.1"), "the page cannot be served at 203.0.113.1"),
    ):
        code, _, err = call("demo", "--model", "fashion", "--device", "cpu", *options)
        assert (code, message in error(err)) == (2, True), err


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_addresses_of_version_6(host):
    page = build_page(["fashion"], device="cpu")
    try:
        _, address, _ = launch(page, host=host, prevent_thread_lock=True, quiet=True)
        assert httpx.get(address, timeout=60).status_code == 200
    finally:
        page.close(verbose=False)


@pytest.mark.slow
def test_what_was_sent_is_gone_when_the_page_ends(tmp_path):
    """Whether the process is asked to end or interrupted, and whoever still looks at the page."""
    for sign in (signal.SIGTERM, signal.SIGINT):
        program = "from diffusion_classifier.cli import main; main()"
        command = [sys.executable, "-c", program, "demo", "--model", "fashion", "--device", "cpu"]
        served = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
        )
        try:
            address = next(line for line in served.stderr if "the page is at" in line).split()[-1].strip()
            files = {"files": ("boot.png", b"x")}
            sent = httpx.post(f"{address}gradio_api/upload", files=files, timeout=60).json()[0]
            assert Path(sent).is_relative_to(tmp_path)
            assert Path(sent).exists()
            (folder,) = tmp_path.glob("diffusion-classifier-*")
            assert folder.stat().st_mode & 0o77 == 0
            with httpx.stream("GET", f"{address}gradio_api/heartbeat/abc", timeout=60):
                served.send_signal(sign)
                served.wait(60)
        finally:
            served.kill()
        assert not list(tmp_path.glob("diffusion-classifier-*"))
