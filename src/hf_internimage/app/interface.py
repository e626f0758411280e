# SPDX-License-Identifier: MIT
"""The pages of the application, by Gradio."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..plain_text import show
from ..prediction.loading import CLASSIFICATION, DETECTION
from ..prediction.output import files_for
from .viewer import Viewer

_UPLOAD_LIMIT = "20mb"
_MOST_FILES = 200
_KEPT_UPLOADS = (600, 3600)  # seconds: look every 10 minutes, delete what is older than an hour
_TITLE = "InternImage"


def build(viewers: list[Viewer]) -> gradio.Blocks:
    """Return the application for one model, or for two side by side, such as before and after a fine-tuning.

    The first model is the one of the pages about sampling points and receptive fields.
    """
    first = viewers[0]
    with gradio.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=_KEPT_UPLOADS) as app:
        gradio.Markdown(f"# {_TITLE}\n" + "\n".join(f"**{viewer.name}**: {viewer.description}  " for viewer in viewers))
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                image = gradio.Image(sources=["upload", "clipboard"], label="Image", height=320, type="filepath")
                # This package decodes the file, and says what is wrong with it.
                image.preprocess = _path_of  # type: ignore[method-assign]
                is_detector = any(viewer.predictor.task == DETECTION for viewer in viewers)
                threshold = gradio.Slider(0.05, 1, 0.3, step=0.05, label="Least score", visible=is_detector)
            with gradio.Column(scale=3):
                with gradio.Tab("Predict"), gradio.Row():
                    for number, viewer in enumerate(viewers, start=1):
                        with gradio.Column(min_width=280):
                            _prediction(viewer, image, threshold, "predict" if number == 1 else f"predict_{number}")
                with gradio.Tab("Sampling points"):
                    _sampling_page(first, image)
                with gradio.Tab("Receptive field"):
                    _field_page(first, image)
                if first.predictor.task == CLASSIFICATION:
                    with gradio.Tab("Class activation"):
                        _activation_page(first, image)
                with gradio.Tab("Many images"):
                    _archive_page(first)
    return app


def serve(viewers: list[Viewer], *, port: int | None = None, open_browser: bool = False) -> None:
    """Run the application until it is stopped, for this machine only: it listens on the loopback address.

    Args:
        viewers: one model, or two.
        port: None for the first free one from 7860 on.
        open_browser: show it at once.
    """
    app = build(viewers).queue(max_size=32)
    _, address, _ = app.launch(
        server_name="127.0.0.1",
        server_port=port,
        inbrowser=open_browser,
        share=False,
        max_file_size=_UPLOAD_LIMIT,
        show_error=True,
        prevent_thread_lock=True,
        quiet=True,
    )
    show(f"{address} (Ctrl-C ends it)")
    app.block_thread()


def _prediction(viewer: Viewer, image: Any, threshold: Any, api_name: str) -> None:
    """Add what a model predicts: a picture, the classes, and the time."""
    shown = gradio.Image(label=viewer.name, interactive=False, visible=viewer.predictor.task != CLASSIFICATION)
    classes = gradio.Label(label="Classes", num_top_classes=8)
    time = gradio.Textbox(label="Time", lines=1)
    outputs = [shown, classes, time]

    def predict(path: str, least: float) -> tuple[Any, ...]:
        picture, prediction, milliseconds = viewer.predict(path)
        return (
            viewer.draw(picture, prediction, least),
            viewer.shares(prediction, least),
            f"{milliseconds:.0f} ms for {picture.width}x{picture.height} pixels",
        )

    image.input(_caught(predict, len(outputs)), [image, threshold], outputs, api_name=api_name)
    threshold.release(_caught(predict, len(outputs)), [image, threshold], outputs, api_visibility="private")


def _sampling_page(viewer: Viewer, image: Any) -> None:
    gradio.Markdown(
        "Click into the left picture, which is what the model sees. Points are larger with their weight; colours are "
        "groups."
    )
    with gradio.Row():
        view = gradio.Image(type="pil", label="What the model sees", interactive=False)
        points = gradio.Image(label="Sampling points", interactive=False)
    stages = len(viewer.depths)
    with gradio.Row():
        stage = gradio.Slider(1, stages, min(3, stages), step=1, label="Stage")
        block = gradio.Slider(1, max(viewer.depths), 1, step=1, label="Block (or the last one)")
        layers = gradio.Slider(1, 4, 1, step=1, label="Layers composed")
    with gradio.Row():
        group = gradio.Dropdown(["all", *map(str, range(max(viewer.groups)))], value="all", label="Group")
        x = gradio.Number(0, label="x", precision=0, minimum=0)
        y = gradio.Number(0, label="y", precision=0, minimum=0)

    def draw(path: str, x: int, y: int, stage: float, block: float, layers: float, group: str) -> Any:
        number = None if group == "all" else int(group)
        return _picture(viewer.sampling(path, (x, y), int(stage), int(block), int(layers), number))

    draw_or_tell, inputs = _caught(draw), [image, x, y, stage, block, layers, group]
    # The page of predictions tells what is wrong with an image.
    image.input(_caught(viewer.model_view, tell=False), image, view, api_name="model_view")
    view.select(_clicked, None, [x, y], api_visibility="private").then(
        draw_or_tell, inputs, points, api_name="sampling_points"
    )
    for control in (stage, block, layers, group):
        control.change(draw_or_tell, inputs, points, api_visibility="private")


def _field_page(viewer: Viewer, image: Any) -> None:
    gradio.Markdown(
        "How much each pixel moves the feature pixel at the centre, on this image at 224x224. The circle holds half "
        "of it."
    )
    stages = len(viewer.depths)
    stage = gradio.Slider(1, stages, min(3, stages), step=1, label="Stage")
    fields = gradio.Image(label="Effective receptive field", show_label=False, interactive=False)
    gradio.Button("Compute").click(
        _caught(lambda path, number: _picture(viewer.receptive_fields(path, int(number)))),
        [image, stage],
        fields,
        api_name="receptive_field",
    )


def _activation_page(viewer: Viewer, image: Any) -> None:
    label = gradio.Dropdown(viewer.predictor.label_names, value=None, label="Class (none: the most probable one)")
    activation = gradio.Image(
        label="Where the last stage's features speak for the class", show_label=False, interactive=False
    )
    gradio.Button("Compute").click(
        _caught(lambda path, name: _picture(viewer.activation(path, name))),
        [image, label],
        activation,
        api_name="class_activation",
    )


def _archive_page(viewer: Viewer) -> None:
    files = gradio.File(file_count="multiple", label=f"Images, at most {_MOST_FILES}", type="filepath")
    archive = gradio.File(label="Tables and pictures")
    notes = gradio.Textbox(label="Notes", lines=3)
    gradio.Button("Predict all").click(
        lambda paths: _predict_many(viewer, paths), files, [archive, notes], api_name="predict_many"
    )


def _picture(figure: Figure) -> np.ndarray:
    """Return a figure as pixels (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _path_of(payload: Any) -> str | None:
    """Return the path of an uploaded file."""
    return None if payload is None else payload.path


def _clicked(event: gradio.SelectData) -> tuple[int, int]:
    return event.index[0], event.index[1]


def _caught(function: Callable[..., Any], outputs: int = 1, *, tell: bool = True) -> Callable[..., Any]:
    """Return a function that shows a ValueError as a message, if it is to `tell`, and does nothing without an image."""
    nothing = None if outputs == 1 else (None,) * outputs

    def call(path: str | None, *values: Any) -> Any:
        if path is None:
            return nothing
        try:
            return function(path, *values)
        except ValueError as error:
            if not tell:
                return nothing
            raise gradio.Error(str(error), print_exception=False) from error

    return call


def _predict_many(viewer: Viewer, paths: list[str] | None) -> tuple[str | None, str]:
    """Write what `hf-internimage predict` writes, as a .zip file."""
    if not paths:
        raise gradio.Error("Choose images first.", print_exception=False)
    if len(paths) > _MOST_FILES:
        message = f"{len(paths)} images are too many; at most {_MOST_FILES} at once."
        raise gradio.Error(message, print_exception=False)
    left_out: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        files = files_for(viewer.predictor.task, "semantic")(Path(scratch), viewer.name, viewer.predictor.label_names)
        for path in paths:
            for source, prediction in viewer.predict_file(path):
                if prediction is None:
                    left_out.append(str(source.problem))
                else:
                    files.add(source, prediction)
        if not files.count:
            message = "None of the files could be used. " + " ".join(left_out[:3])
            raise gradio.Error(message, print_exception=False)
        files.finish(left_out)
        # Gradio copies the archive to its own folder of downloads.
        archive = shutil.make_archive(str(Path(tempfile.mkdtemp(), "predictions")), "zip", scratch)
    return archive, "\n".join([f"{files.count} images", *(f"left out: {problem}" for problem in left_out)])


__all__ = ["build", "serve"]
