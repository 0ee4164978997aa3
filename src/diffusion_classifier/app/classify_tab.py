"""The first tab: an image, labels, the race between them, and why it ended so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import torch
from PIL import Image

from ..analysis.image_figures import draw_where, where
from ..analysis.inversion import reconstruct
from ..data.fashion import load_sample
from ..data.images import load_image
from ..data.prompts import fill_template, parse_labels
from ..errors import InputError
from ..search.classification import Classification
from ..tasks.scene_tasks import open_pairs
from .html_parts import bars, dropped, leads, status
from .inputs import (
    MAX_TEXT,
    QUEUE,
    Models,
    drawing_of,
    read_upload,
    refuse_long_text,
    refuse_long_work,
    sentences,
    sketchpad,
    upload,
)
from .live_search import watch

TEMPLATE = "a photo of a {}."
STEP = 0.12
"""Seconds for which each step of the race is seen; a browser that is sent more falls behind."""
NUM_EXAMPLES = 8
CANVAS = 336
KEPT_EDGE, KEPT_SECONDS = 1024, 3600
"""Of an image that may be asked about once more: why?"""
ASK = "Choose a photograph, and press Classify."


def build(models: Models) -> None:
    """Add the tab's components, and what they do."""
    first = models.names[0]
    hint, reads_text, shown = _suiting(models, first)
    drawn, answer = gr.State(False), gr.State(None, time_to_live=KEPT_SECONDS)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            model = gr.Dropdown(models.names, value=first, label="Model", interactive=len(models.names) > 1)
            with gr.Tabs():
                with gr.Tab("Photograph") as as_photo:
                    photo = upload(sources=["upload", "clipboard", "webcam"], height=300)
                    examples = gr.Gallery(
                        shown, label="Some to try", columns=4, allow_preview=False, object_fit="contain", format="png",
                        height=215, visible=bool(shown), elem_classes="dc-photo",
                    )  # fmt: skip
                    negative = gr.Checkbox(
                        label="Exchange light and dark", info="fashion and fashion-fast know clothes on black only"
                    )
                with gr.Tab("Drawing") as as_drawing:
                    black = Image.new("RGB", (CANVAS, CANVAS))
                    canvas = sketchpad(
                        {"background": black, "layers": [], "composite": black}, label="Draw in white",
                        canvas_size=(CANVAS, CANVAS), fixed_canvas=True, layers=False, transforms=(),
                        brush=gr.Brush(default_size=16, colors=["#ffffff", "#c0c0c0", "#808080"], color_mode="fixed"),
                    )  # fmt: skip
            labels = gr.Textbox(label="Labels", info="Separated by commas", placeholder=hint, max_length=MAX_TEXT)
            template = gr.Textbox(
                _prompt(first), label="Prompt", info="{} stands for a label", visible=reads_text, max_length=MAX_TEXT
            )
            with gr.Accordion("Settings", open=False):
                draws = gr.Slider(
                    0, 256, 0, step=1, precision=0, label="Draws at most", info="0: as many as suit the model"
                )
                seed = gr.Number(0, label="Seed of the noise", precision=0)
                slowly = gr.Checkbox(True, label="Slow enough to watch")
            with gr.Row():
                start = gr.Button("Classify", variant="primary")
                stop = gr.Button("Stop")
        with gr.Column(scale=3, min_width=300):
            told = gr.HTML(ASK, elem_id="status")
            race = gr.HTML(elem_id="race", container=True)
            other = gr.HTML(elem_id="contrastive", container=True, visible=False)
            plot = gr.LinePlot(
                x="t", y="lead", height=240, visible=False, x_title="time: no noise to pure noise", y_title="error",
                label="Error with the runner-up above that with the winner, draw by draw",
            )  # fmt: skip
            with gr.Accordion("Why?", open=False):
                gr.Markdown(
                    "Where on the image the winner fits better than the runner-up (blue), and the image taken to noise "
                    "and back under each of the two: under which is less lost?"
                )
                why = gr.Button("Show why")
                spot = gr.Image(label="Where", interactive=False, visible=False, buttons=["fullscreen"])
                back = gr.Gallery(label="To noise and back", columns=3, height=220, visible=False, object_fit="contain")
    private: dict[str, Any] = {"api_visibility": "private"}
    as_photo.select(lambda: False, None, drawn, **private)
    as_drawing.select(lambda: True, None, drawn, **private)

    def chosen(name: str, event: gr.SelectData) -> Image.Image | None:
        images = _examples(name)  # not what the client says that it chose
        return images[event.index] if event.index in range(len(images)) else None

    examples.select(chosen, model, photo, **private)

    def suit(name: str) -> tuple[Any, ...]:
        with sentences():
            hint, reads_text, shown = _suiting(models, name)
        return (
            gr.Textbox(placeholder=hint),
            gr.Textbox(_prompt(name), visible=reads_text),
            gr.Gallery(shown, visible=bool(shown)),
        )

    model.change(suit, model, [labels, template, examples], **private, **QUEUE)

    def run(
        name: str,
        from_canvas: bool,
        file: str | None,
        as_negative: bool,
        sketch: str | None,
        text: str | None,
        prompt: str | None,
        most: int | None,
        number: int | None,
        paced: bool,
    ) -> Iterator[tuple[Any, ...]]:
        hidden = gr.HTML(visible=False)
        yield "…", "", gr.LinePlot(visible=False), hidden, None  # whatever comes of it, the former answer is gone
        with sentences():
            picture = drawing_of(sketch) if from_canvas else read_upload(file, as_negative)
            names, options = _asked(models, name, text, prompt, most, number)
            steps = watch(models[name], picture.image, names, turn=models.turn, **options)
            shown, result = 0.0, next(steps)
            for following in steps:
                wait = shown + STEP - time.monotonic()
                if paced and wait > 0:
                    time.sleep(wait)
                if paced or wait <= 0:
                    yield status(result, False), *_race(result), hidden, None
                    shown = time.monotonic()
                result = following
            _refuse_failure(result)
            picture.image.thumbnail((KEPT_EDGE, KEPT_EDGE))
            pair = tuple(result.scores)[:2]
            index = [result.class_names.index(label) for label in pair]
            prompts = (
                fill_template(options["template"], pair) if "template" in options else index if not names else pair
            )
            reading = models[name].settings_for(
                result.class_names, strategy=options.get("strategy"), seed=options["seed"]
            )
            found = (name, picture.image, pair, prompts, reading)
            yield status(result, True, picture.notes), *_race(result), hidden, found
            with models.turn:
                beside = _contrastive(models, name, picture.image, result, options.get("template"))
            if beside is not None:
                yield gr.skip(), gr.skip(), gr.skip(), gr.HTML(beside, visible=True), gr.skip()

    asked, seen = (
        [model, drawn, photo, negative, canvas, labels, template, draws, seed, slowly],
        [told, race, plot, other, answer],
    )
    running = [trigger(run, asked, seen, **private, **QUEUE) for trigger in (start.click, labels.submit)]
    stop.click(lambda: "Stopped.", None, told, cancels=running, **private)

    def explain(found: tuple[Any, ...] | None) -> tuple[Any, Any]:
        with sentences(), models.turn:
            if found is None:
                raise InputError("classify an image first")
            name, image, pair, prompts, reading = found
            denoiser = models[name].denoiser
            picture, difference = where(denoiser, image, prompts, draws=reading.draws, weights=reading.weights)
            with TemporaryDirectory() as folder:
                file = Path(folder) / "where.png"
                draw_where(picture, difference, pair, file)
                map_ = load_image(file).image
            original, ways = reconstruct(denoiser, image, prompts)
            named = ["autoencoder alone"] * (len(ways) - 2) + list(pair)
            pictures = [(original, "original")]
            pictures += [(way.image, f"{label}: off by {way.rmse:.3f}") for label, way in zip(named, ways, strict=True)]
        return gr.Image(map_, visible=True), gr.Gallery([(_large(p), text) for p, text in pictures], visible=True)

    why.click(explain, answer, [spot, back], **private, **QUEUE)

    def classify(
        file: str | None, name: str, text: str | None, prompt: str | None, most: int | None, number: int | None
    ) -> dict[str, Any]:
        """Classify one image; the answer is a row as that of `diffusion-classifier classify --format jsonl`."""
        with sentences(), models.turn:
            picture = read_upload(file)
            names, options = _asked(models, name, text, prompt, most, number)
            (result,) = models[name].classify([picture.image], names, **options)
            _refuse_failure(result)
            return replace(result, name=picture.name, notes=picture.notes).as_dict()

    row = gr.JSON(visible=False, label="answer")
    gr.Button(visible=False).click(
        classify, [photo, model, labels, template, draws, seed], row, api_name="classify", **QUEUE
    )


def _suiting(models: Models, name: str) -> tuple[str, bool, list[Image.Image]]:
    """For a model: a hint at its labels, whether it reads text, and images to try it on."""
    known = models[name].denoiser.class_names
    hint = "a sneaker, two bags" if known is None else f"all {len(known)}: {', '.join(known[:10])}"
    return hint, known is None, _examples(name)


def _prompt(name: str) -> str:
    return "{}" if name == "scenes" else TEMPLATE


def _asked(
    models: Models, name: str, text: str | None, prompt: str | None, most: int | None, seed: int | None
) -> tuple[list[str] | None, dict[str, Any]]:
    """Labels, and options of `DiffusionClassifier.classify`; what a client left empty is None."""
    refuse_long_text(text, prompt)
    names = parse_labels(text) if text and text.strip() else None
    options: dict[str, Any] = {"seed": seed or 0}
    if models[name].denoiser.class_names is None:
        options["template"] = prompt or "{}"
    if most:
        options["strategy"] = f"sequential:{most}/0.01"
    among = names or models[name].denoiser.class_names
    if among:
        strategy = models[name].settings_for(among, strategy=options.get("strategy")).strategy
        refuse_long_work("labels", among, strategy.num_draws)
    return names, options


def _refuse_failure(result: Classification) -> None:
    if result.failure is not None:
        raise InputError(result.failure)


def _contrastive(
    models: Models, name: str, image: Image.Image, result: Classification, prompt: str | None
) -> str | None:
    reader = models.contrastive(name)
    if reader is None:
        return None
    logits_of = reader.logits_for(result.class_names, (prompt,) if prompt else ())
    logits = logits_of(image, range(len(result.class_names)))
    shares = torch.softmax(logits.double(), 0).tolist()
    return bars(dict(zip(result.class_names, shares, strict=True)), title="The same, read by a contrastive model")


def _race(result: Classification) -> tuple[str, Any]:
    return bars(result.scores, dropped(result), title="Posterior"), gr.LinePlot(leads(result), visible=True)


@cache
def _examples(name: str) -> list[Image.Image]:
    """Test images that the model may be tried on."""
    if name == "scenes":
        pairs = open_pairs()
        return [load_image(pairs.read(i)).image for i in range(NUM_EXAMPLES)]
    if name in ("fashion", "fashion-fast"):
        return [sample.image for sample in load_sample(NUM_EXAMPLES)]
    return []


def _large(image: Image.Image) -> Image.Image:
    """Small pictures as squares that can be seen."""
    times = max(1, 224 // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
