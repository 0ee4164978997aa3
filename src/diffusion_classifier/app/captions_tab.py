"""The tab "Captions": how well captions fit an image."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pandas as pd

from ..errors import InputError
from .inputs import MAX_TEXT, QUEUE, Models, check_text_length, check_work, read_upload, sentences, upload


def build(models: Models) -> None:
    """Add the components of the tab and their events."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            model = gr.Dropdown(models.names, value=models.names[-1], label="Model", interactive=len(models.names) > 1)
            photo = upload(sources=["upload", "clipboard"], height=260)
            captions = gr.Textbox(
                label="Captions", lines=4, max_length=MAX_TEXT,
                info="One per line: texts, or class names of a class-conditional model",
                placeholder="a dress left of a bag\na bag left of a dress",
            )  # fmt: skip
            draws = gr.Slider(1, 256, 64, step=1, precision=0, label="Draws", info="Per caption")
            start = gr.Button("Score", variant="primary")
        with gr.Column(scale=3, min_width=300):
            table = gr.Dataframe(
                headers=["caption", "score", "± standard error", "mean error"], interactive=False, wrap=True,
                label="Scores in nats, relative to the best caption; standard errors are of this difference",
            )  # fmt: skip

    def score(name: str, file: str | None, text: str | None, number: int) -> pd.DataFrame:
        """Score how well each caption fits the image."""
        with sentences(), models.turn:
            picture = read_upload(file)
            check_text_length(text)
            wanted = [line.strip() for line in (text or "").splitlines() if line.strip()]
            check_work("captions", wanted, number)
            scores: list[Any] = models[name].score(picture.image, wanted, draws=number)
            if scores[0].failure is not None:
                raise InputError(scores[0].failure)
        best = sorted(scores, key=lambda s: -s.score)
        top = best[0].score
        rows = [(s.caption, round(s.score - top, 2), round(s.standard_error, 2), round(s.error, 5)) for s in best]
        return pd.DataFrame(rows, columns=["caption", "score", "± standard error", "mean error"])

    start.click(score, [model, photo, captions, draws], table, api_name="score", **QUEUE)
