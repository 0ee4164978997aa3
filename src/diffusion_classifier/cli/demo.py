"""`demo`."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from ..errors import InputError
from .options import BatchSize, Device, Dtype, app, end_in_order, load_arguments, say


@app.command()
def demo(
    model: Annotated[
        list[str] | None, typer.Option(help="Bundled name, folder, or hub id. Repeatable; all bundled if not given.")
    ] = None,
    run: Annotated[list[Path] | None, typer.Option(help="Folder of a run to browse. Repeatable.")] = None,
    data: Annotated[str | None, typer.Option(help="Where the images of the runs are, if not where they were.")] = None,
    contrastive: Annotated[
        str | None, typer.Option(help="Contrastive model that reads the same images: folder or hub id.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets everybody in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The first free one from 7860 on else.")] = None,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Of one upload.")] = 20,
    open_browser: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Serve a page to play with: classify and watch the race, score captions, browse runs. Needs the extra 'demo'.

    Example: `diffusion-classifier demo --run runs/sample`
    """
    end_in_order()
    with TemporaryDirectory(prefix="diffusion-classifier-") as folder:
        # What is sent is for this user's eyes, and gone when the page is; gradio asks for the name when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            import gradio  # noqa: F401
        except ImportError as e:
            raise InputError("the page needs gradio: pip install 'diffusion-classifier[demo]'") from e
        from ..app import build_page, launch
        from ..denoisers.load import bundled_models

        options = load_arguments("", device, dtype, batch_size, False)
        names = model or list(bundled_models())
        page = build_page(
            names, run_folders=run, data=data, contrastive=contrastive,
            **{name: options[name] for name in ("device", "dtype", "batch_size")},
        )  # fmt: skip
        try:
            _, address, _ = launch(
                page, host=host, port=port, max_megabytes=max_megabytes, inbrowser=open_browser, quiet=True,
                prevent_thread_lock=True,
            )  # fmt: skip
        except Exception as e:  # gradio asks its own page for an answer, and raises whatever comes of it
            raise InputError(f"the page cannot be served at {host}: {e}") from e
        say(f"the page is at {address}")
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)
