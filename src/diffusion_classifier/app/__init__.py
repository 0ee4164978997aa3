"""The page to play with: a gradio app on this machine alone, unless told otherwise."""

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
"""Without fonts from elsewhere, and with contrasts of 4.5 at least (WCAG 2 AA)."""
MAX_WAITING = 64
"""Requests in the queue; more are told to come back later."""
MAX_SESSIONS = 200
"""Of which the page remembers the last image; the oldest are forgotten."""


def build_page(
    models: list[str],
    *,
    run_folders: list[Path] | None = None,
    data: str | None = None,
    contrastive: str | None = None,
    **options: Any,
) -> gr.Blocks:
    """The page.

    Args:
        models: bundled names, folders, or hub ids; the first is loaded at once, the others when they are chosen.
        run_folders: runs that may be looked at.
        data: where their images are; where they were if None.
        contrastive: a contrastive model to read the same images with, where labels are texts.
        **options: of `DiffusionClassifier.from_pretrained`.

    Raises:
        InputError: a model that cannot be loaded, one that is not contrastive, or a folder that holds no run over
            classes.
    """
    if contrastive is not None and kind_of(contrastive) != "contrastive":
        raise InputError(f"{contrastive} is no contrastive model that can be found: give one of CLIP or SigLIP")
    shown = Models(models, contrastive, options)
    with gr.Blocks(title="Diffusion classifier", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(
            "# Diffusion classifier\n\nNoise an image, let the network predict the noise under each label: the label "
            "whose prediction errs least wins."
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
    """Serve the page; nothing of the disk is served but what was sent to it.

    Args:
        page: of `build_page`.
        host: address to listen at; this machine alone unless another is given.
        port: the first free one from 7860 on if None.
        max_megabytes: of one upload.
        **more: of gradio's `launch`.

    Raises:
        OSError: the address is not of this machine, or no port is free.
    """
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))  # gradio would try a hundred ports at an address that is not of this machine
    return page.launch(
        server_name=f"[{host}]" if ":" in host else host, server_port=port, state_session_capacity=MAX_SESSIONS,
        max_file_size=f"{max_megabytes}mb", share=False, ssr_mode=False,
        theme=THEME, css=STYLE, footer_links=["api", "settings"], run_history=False, enable_monitoring=False,
        show_error=False, **more,
    )  # fmt: skip
