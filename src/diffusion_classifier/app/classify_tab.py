"""The tab "Classify": an image, labels, the search over them, and what decided it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

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
    check_text_length,
    check_work,
    drawing_of,
    read_upload,
    sentences,
    sketchpad,
    upload,
)
from .live_search import watch

TEMPLATE = "a photo of a {}."
STEP = 0.12
"""Seconds between updates of the search; browsers cannot keep up with more."""
NUM_EXAMPLES = 8
CANVAS = 336
KEPT_EDGE, KEPT_SECONDS = 1024, 3600
"""Size in pixels and lifetime of the image kept for "Show why"."""
START = "Choose a photograph, and press Classify."


class _Inputs(NamedTuple):
    """Components on the left of the tab."""

    model: gr.Dropdown
    as_photo: gr.Tab
    photo: gr.Image
    examples: gr.Gallery
    negative: gr.Checkbox
    as_drawing: gr.Tab
    canvas: gr.Sketchpad
    labels: gr.Textbox
    template: gr.Textbox
    draws: gr.Slider
    seed: gr.Number
    slowly: gr.Checkbox
    start: gr.Button
    stop: gr.Button


class _Outputs(NamedTuple):
    """Components on the right of the tab."""

    status: gr.HTML
    bars: gr.HTML
    plot: gr.LinePlot
    contrastive: gr.HTML
    why: gr.Button
    where: gr.Image
    inversion: gr.Gallery


def build(models: Models) -> None:
    """Add the components of the tab and their events."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            inputs = _add_inputs(models)
        with gr.Column(scale=3, min_width=300):
            outputs = _add_outputs()
    _add_events(_Events(models), inputs, outputs)


def _add_inputs(models: Models) -> _Inputs:
    first = models.names[0]
    hint, reads_text, shown = _suiting(models, first)
    model = gr.Dropdown(models.names, value=first, label="Model", interactive=len(models.names) > 1)
    with gr.Tabs():
        with gr.Tab("Photograph") as as_photo:
            photo = upload(sources=["upload", "clipboard", "webcam"], height=300)
            examples = gr.Gallery(
                shown, label="Examples", columns=4, allow_preview=False, object_fit="contain", format="png",
                height=215, visible=bool(shown), elem_classes="dc-photo",
            )  # fmt: skip
            negative = gr.Checkbox(
                label="Invert light and dark", info="fashion and fashion-fast were trained on clothes on black"
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
        draws = gr.Slider(0, 256, 0, step=1, precision=0, label="Maximum draws", info="0: the default of the model")
        seed = gr.Number(0, label="Seed of the noise", precision=0)
        slowly = gr.Checkbox(True, label="Slow enough to watch")
    with gr.Row():
        start = gr.Button("Classify", variant="primary")
        stop = gr.Button("Stop")
    return _Inputs(
        model, as_photo, photo, examples, negative, as_drawing, canvas, labels, template, draws, seed, slowly, start,
        stop,
    )  # fmt: skip


def _add_outputs() -> _Outputs:
    status_line = gr.HTML(START, elem_id="status")
    posterior = gr.HTML(elem_id="race", container=True)
    contrastive = gr.HTML(elem_id="contrastive", container=True, visible=False)
    plot = gr.LinePlot(
        x="t", y="lead", height=240, visible=False, x_title="timestep: no noise to pure noise", y_title="error",
        label="Error under the runner-up minus error under the winner, per draw",
    )  # fmt: skip
    with gr.Accordion("Why?", open=False):
        gr.Markdown(
            "The map shows where on the image the winner fits better than the runner-up (blue). The images below it "
            "were inverted to noise and reconstructed under each of the two: a label that fits usually loses less."
        )
        why = gr.Button("Show why")
        where_map = gr.Image(label="Where", interactive=False, visible=False, buttons=["fullscreen"])
        inversion = gr.Gallery(
            label="Inversion and reconstruction", columns=3, height=220, visible=False, object_fit="contain"
        )
    return _Outputs(status_line, posterior, plot, contrastive, why, where_map, inversion)


def _add_events(events: _Events, inputs: _Inputs, outputs: _Outputs) -> None:
    private: dict[str, Any] = {"api_visibility": "private"}
    drawn, answer = gr.State(False), gr.State(None, time_to_live=KEPT_SECONDS)
    inputs.as_photo.select(lambda: False, None, drawn, **private)
    inputs.as_drawing.select(lambda: True, None, drawn, **private)
    inputs.examples.select(_chosen_example, inputs.model, inputs.photo, **private)
    suited = [inputs.labels, inputs.template, inputs.examples]
    inputs.model.change(events.suit, inputs.model, suited, **private, **QUEUE)
    search = [
        inputs.model, drawn, inputs.photo, inputs.negative, inputs.canvas, inputs.labels, inputs.template,
        inputs.draws, inputs.seed, inputs.slowly,
    ]  # fmt: skip
    shown = [outputs.status, outputs.bars, outputs.plot, outputs.contrastive, answer]
    triggers = inputs.start.click, inputs.labels.submit
    running = [trigger(events.run, search, shown, **private, **QUEUE) for trigger in triggers]
    inputs.stop.click(lambda: "Stopped.", None, outputs.status, cancels=running, **private)
    outputs.why.click(events.explain, answer, [outputs.where, outputs.inversion], **private, **QUEUE)
    row = gr.JSON(visible=False, label="answer")
    asked = [inputs.photo, inputs.model, inputs.labels, inputs.template, inputs.draws, inputs.seed]
    gr.Button(visible=False).click(events.classify, asked, row, api_name="classify", **QUEUE)


def _chosen_example(name: str, event: gr.SelectData) -> Image.Image | None:
    images = _examples(name)  # not the image that the client claims to have chosen
    return images[event.index] if event.index in range(len(images)) else None


class _Events:
    """Functions that gradio calls.

    Args:
        models: the models of the page.
    """

    def __init__(self, models: Models) -> None:
        self.models = models

    def suit(self, name: str) -> tuple[Any, ...]:
        """Adapt the components to a model."""
        with sentences():
            hint, reads_text, shown = _suiting(self.models, name)
        return (
            gr.Textbox(placeholder=hint),
            gr.Textbox(_prompt(name), visible=reads_text),
            gr.Gallery(shown, visible=bool(shown)),
        )

    def run(
        self,
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
        """Classify an image, and show the search while it runs."""
        hidden = gr.HTML(visible=False)
        yield "…", "", gr.LinePlot(visible=False), hidden, None  # clear the previous result
        with sentences():
            picture = drawing_of(sketch) if from_canvas else read_upload(file, as_negative)
            names, options = _asked(self.models, name, text, prompt, most, number)
            steps = watch(self.models[name], picture.image, names, turn=self.models.turn, **options)
            shown, result = 0.0, next(steps)
            for following in steps:
                wait = shown + STEP - time.monotonic()
                if paced and wait > 0:
                    time.sleep(wait)
                if paced or wait <= 0:
                    yield status(result, False), *_result(result), hidden, None
                    shown = time.monotonic()
                result = following
            _check_failure(result)
            picture.image.thumbnail((KEPT_EDGE, KEPT_EDGE))
            pair = tuple(result.scores)[:2]
            index = [result.class_names.index(label) for label in pair]
            prompts = (
                fill_template(options["template"], pair) if "template" in options else index if not names else pair
            )
            reading = self.models[name].settings_for(
                result.class_names, strategy=options.get("strategy"), seed=options["seed"]
            )
            found = (name, picture.image, pair, prompts, reading)
            yield status(result, True, picture.notes), *_result(result), hidden, found
            with self.models.turn:
                beside = _contrastive(self.models, name, picture.image, result, options.get("template"))
            if beside is not None:
                yield gr.skip(), gr.skip(), gr.skip(), gr.HTML(beside, visible=True), gr.skip()

    def explain(self, found: tuple[Any, ...] | None) -> tuple[Any, Any]:
        """Show where the winner fits better than the runner-up, and the reconstructions under both."""
        with sentences(), self.models.turn:
            if found is None:
                raise InputError("classify an image first")
            name, image, pair, prompts, reading = found
            denoiser = self.models[name].denoiser
            picture, difference = where(denoiser, image, prompts, draws=reading.draws, weights=reading.weights)
            with TemporaryDirectory() as folder:
                file = Path(folder) / "where.png"
                draw_where(picture, difference, pair, file)
                map_ = load_image(file).image
            original, ways = reconstruct(denoiser, image, prompts)
            named = ["autoencoder alone"] * (len(ways) - 2) + list(pair)
            pictures = [(original, "original")]
            pictures += [(way.image, f"{label}: RMSE {way.rmse:.3f}") for label, way in zip(named, ways, strict=True)]
        return gr.Image(map_, visible=True), gr.Gallery([(_large(p), text) for p, text in pictures], visible=True)

    def classify(
        self, file: str | None, name: str, text: str | None, prompt: str | None, most: int | None, number: int | None
    ) -> dict[str, Any]:
        """Classify one image. Returns a row of `diffusion-classifier classify --format jsonl`."""
        with sentences(), self.models.turn:
            picture = read_upload(file)
            names, options = _asked(self.models, name, text, prompt, most, number)
            (result,) = self.models[name].classify([picture.image], names, **options)
            _check_failure(result)
            return replace(result, name=picture.name, notes=picture.notes).as_dict()


def _suiting(models: Models, name: str) -> tuple[str, bool, list[Image.Image]]:
    """Return a hint at a model's labels, whether it is a text-to-image model, and example images."""
    known = models[name].denoiser.class_names
    hint = "a sneaker, two bags" if known is None else f"all {len(known)}: {', '.join(known[:10])}"
    return hint, known is None, _examples(name)


def _prompt(name: str) -> str:
    return "{}" if name == "scenes" else TEMPLATE


def _asked(
    models: Models, name: str, text: str | None, prompt: str | None, most: int | None, seed: int | None
) -> tuple[list[str] | None, dict[str, Any]]:
    """Return labels and options of `DiffusionClassifier.classify`; fields that a client left empty are None."""
    check_text_length(text, prompt)
    names = parse_labels(text) if text and text.strip() else None
    options: dict[str, Any] = {"seed": seed or 0}
    if models[name].denoiser.class_names is None:
        options["template"] = prompt or "{}"
    if most:
        options["strategy"] = f"sequential:{most}/0.01"
    among = names or models[name].denoiser.class_names
    if among:
        strategy = models[name].settings_for(among, strategy=options.get("strategy")).strategy
        check_work("labels", among, strategy.num_draws)
    return names, options


def _check_failure(result: Classification) -> None:
    """Raise if the image could not be classified."""
    if result.failure is not None:
        raise InputError(result.failure)


def _contrastive(
    models: Models, name: str, image: Image.Image, result: Classification, prompt: str | None
) -> str | None:
    baseline = models.contrastive(name)
    if baseline is None:
        return None
    logits_of = baseline.logits_for(result.class_names, (prompt,) if prompt else ())
    logits = logits_of(image, range(len(result.class_names)))
    shares = torch.softmax(logits.double(), 0).tolist()
    return bars(dict(zip(result.class_names, shares, strict=True)), title="Probabilities of a contrastive model")


def _result(result: Classification) -> tuple[str, Any]:
    return bars(result.scores, dropped(result), title="Posterior"), gr.LinePlot(leads(result), visible=True)


@cache
def _examples(name: str) -> list[Image.Image]:
    """Return test images of a bundled model."""
    if name == "scenes":
        pairs = open_pairs()
        return [load_image(pairs.read(i)).image for i in range(NUM_EXAMPLES)]
    if name in ("fashion", "fashion-fast"):
        return [sample.image for sample in load_sample(NUM_EXAMPLES)]
    return []


def _large(image: Image.Image) -> Image.Image:
    """Enlarge a small image to a visible size."""
    times = max(1, 224 // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
