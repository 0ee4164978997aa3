"""`demo`."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from ..errors import InputError
from .groups import option
from .options import BatchSize, Device, Dtype, app, batch_size_of, end_in_order, say


@app.command()
def demo(
    model: Annotated[
        list[str] | None,
        option("Model", "Bundled name, folder or hub id. Repeatable. Default: all bundled models."),
    ] = None,
    run: Annotated[list[Path] | None, typer.Option(help="Folder of a run to browse. Repeatable.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Folder, file or hub id of the runs' images. Default: the one the runs evaluated."),
    ] = None,
    contrastive: Annotated[
        str | None,
        option("Model", "Contrastive model to compare text-to-image models with: folder or hub id. Default: none."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 accepts other machines.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on. Default: the first free one from 7860.")
    ] = None,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Largest upload in megabytes.")] = 20,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Serve a web page: classify and watch the search, score captions, browse runs. Needs the extra 'demo'.

    Example: `diffusion-classifier demo --run runs/sample`
    """
    end_in_order()
    with TemporaryDirectory(prefix="diffusion-classifier-") as folder:
        # Uploads are private, and deleted with the page. Gradio reads the variable when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            import gradio  # noqa: F401
        except ImportError as e:
            raise InputError("the page needs gradio: pip install 'diffusion-classifier[demo]'") from e
        from ..app.page import build_page, launch
        from ..denoisers.load import bundled_models

        names = model or list(bundled_models())
        page = build_page(
            names, run_folders=run, data=data, contrastive=contrastive, device=device, dtype=dtype,
            batch_size=batch_size_of(batch_size),
        )  # fmt: skip
        try:
            _, address, _ = launch(
                page, host=host, port=port, max_megabytes=max_megabytes, inbrowser=open_browser, quiet=True,
                prevent_thread_lock=True,
            )  # fmt: skip
        except Exception as e:  # gradio requests its own page, and raises any error of that request
            raise InputError(f"the page cannot be served at {host}: {e}") from e
        say(f"the page is at {address}")
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)
