"""Build and serve the page, by gradio."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import gradio as gr

from ..baselines.load import kind_of
from ..errors import InputError
from . import captions_tab, classify_tab, runs_tab
from .html_parts import STYLE
from .inputs import Models

THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    color_accent="*primary_600",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    body_text_color_subdued="*neutral_500",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
)
"""Theme without remote fonts, with contrasts of at least 4.5 (WCAG 2 AA)."""
MAX_WAITING = 64
"""Length of the queue; further requests are rejected."""
MAX_SESSIONS = 200
"""Sessions whose state is kept; the oldest is dropped."""


def build_page(
    models: list[str],
    *,
    run_folders: list[Path] | None = None,
    data: str | None = None,
    contrastive: str | None = None,
    **options: Any,
) -> gr.Blocks:
    """Build the page.

    Args:
        models: bundled names, folders or hub ids. The first is loaded at once, the others when they are chosen.
        run_folders: runs that can be browsed.
        data: folder, file or hub id of their images; the one the runs evaluated if None.
        contrastive: contrastive model to compare text-to-image models with.
        **options: options of `DiffusionClassifier.from_pretrained`.

    Raises:
        InputError: a model cannot be loaded, `contrastive` is no contrastive model, or a folder holds no run on
            classes.
    """
    if contrastive is not None and kind_of(contrastive) != "contrastive":
        raise InputError(f"{contrastive} is not a contrastive model: give a CLIP or SigLIP model")
    shown = Models(models, contrastive, options)
    with gr.Blocks(title="Diffusion classifier", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(
            "# Diffusion classifier\n\nAdd noise to an image, and let the network predict the noise under each label. "
            "The label with the smallest prediction error wins."
        )
        with gr.Tabs():
            with gr.Tab("Classify"):
                classify_tab.build(shown)
            with gr.Tab("Captions"):
                captions_tab.build(shown)
            with gr.Tab("Runs"):
                runs_tab.build(page, run_folders or [], data)
    return page.queue(max_size=MAX_WAITING)


def launch(
    page: gr.Blocks, *, host: str = "127.0.0.1", port: int | None = None, max_megabytes: int = 20, **more: Any
) -> Any:
    """Serve the page. No files are served except uploads.

    Args:
        page: the page from `build_page`.
        host: address to listen on; by default, only this machine can connect.
        port: port to listen on; the first free one from 7860 if None.
        max_megabytes: largest upload in megabytes.
        **more: other arguments of gradio's `launch`.

    Raises:
        OSError: the address does not belong to this machine, or no port is free.
    """
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))  # gradio would try a hundred ports at an address of another machine
    return page.launch(
        server_name=f"[{host}]" if ":" in host else host, server_port=port, state_session_capacity=MAX_SESSIONS,
        max_file_size=f"{max_megabytes}mb", share=False, ssr_mode=False,
        theme=THEME, css=STYLE, footer_links=["api", "settings"], run_history=False, enable_monitoring=False,
        show_error=False, **more,
    )  # fmt: skip
