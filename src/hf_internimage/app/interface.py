# SPDX-License-Identifier: MIT
"""The pages of the application, by Gradio."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio

from ..prediction.output import files_for
from .viewer import Viewer

_UPLOAD_LIMIT = "20mb"
_MOST_FILES = 200
_KEPT_UPLOADS = (600, 3600)  # seconds: look every 10 minutes, delete what is older than an hour
_TITLE = "InternImage"


class _Upload(gradio.Image):
    """An image that stays an uploaded file: this package decodes it, and says what is wrong with it."""

    is_template = True  # for Gradio, it is its base class

    def preprocess(self, payload: Any) -> str | None:
        return None if payload is None else payload.path


def build(viewers: list[Viewer]) -> gradio.Blocks:
    """Return the application for one model, or for two side by side, such as before and after a fine-tuning.

    The first model is the one of the pages about sampling points and receptive fields.
    """
    first = viewers[0]
    stages = len(first.depths)
    with gradio.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=_KEPT_UPLOADS) as app:
        gradio.Markdown(f"# {_TITLE}\n" + "\n".join(f"**{viewer.name}**: {viewer.description}  " for viewer in viewers))
        with gradio.Row():
            image = _Upload(sources=["upload", "clipboard"], label="Image", height=320)
            threshold = gradio.Slider(
                0.05, 1, 0.3, step=0.05, label="Least score", visible=first.predictor.task == "object-detection"
            )
        with gradio.Tab("Predict"), gradio.Row():
            for number, viewer in enumerate(viewers):
                with gradio.Column():
                    _prediction(viewer, image, threshold, "predict" if number == 0 else f"predict_{number + 1}")
        with gradio.Tab("Sampling points"):
            gradio.Markdown(
                "Click into the left picture, which is what the model sees. Points are larger with their weight; "
                "colours are groups."
            )
            with gradio.Row():
                stage = gradio.Slider(1, stages, min(3, stages), step=1, label="Stage")
                block = gradio.Slider(1, max(first.depths), 1, step=1, label="Block (the last one if there are fewer)")
                layers = gradio.Slider(1, 4, 1, step=1, label="Layers composed")
                group = gradio.Dropdown(["all", *map(str, range(max(first.groups)))], value="all", label="Group")
            with gradio.Row():
                view = gradio.Image(type="pil", label="What the model sees", interactive=False)
                points = gradio.Plot(label="Sampling points")
            with gradio.Row():
                x = gradio.Number(0, label="x", precision=0, minimum=0)
                y = gradio.Number(0, label="y", precision=0, minimum=0)
            inputs = [image, x, y, stage, block, layers, group]
            image.change(_caught(lambda path: first.model_view(path)), image, view, api_name="model_view")
            view.select(_clicked, None, [x, y], api_visibility="private").then(
                _caught(lambda *values: _sampling(first, *values)), inputs, points, api_name="sampling_points"
            )
            for control in (stage, block, layers, group):
                control.change(
                    _caught(lambda *values: _sampling(first, *values)), inputs, points, api_visibility="private"
                )
        with gradio.Tab("Receptive field"):
            gradio.Markdown("How much each pixel moves the centre of a stage's features, on this image.")
            field_stage = gradio.Slider(1, stages, min(3, stages), step=1, label="Stage")
            fields = gradio.Plot(label="Effective receptive field")
            gradio.Button("Compute").click(
                _caught(lambda path, number: first.receptive_fields(path, int(number))),
                [image, field_stage],
                fields,
                api_name="receptive_field",
            )
        if first.predictor.task == "image-classification":
            with gradio.Tab("Class activation"):
                names = first.predictor.label_names
                label = gradio.Dropdown(names, value=None, label="Class (none: the most probable one)")
                activation = gradio.Plot(label="Where the last stage speaks for the class")
                gradio.Button("Compute").click(
                    _caught(first.activation), [image, label], activation, api_name="class_activation"
                )
        with gradio.Tab("Many images"):
            files = gradio.File(file_count="multiple", label=f"Images, at most {_MOST_FILES}", type="filepath")
            archive = gradio.File(label="Tables and pictures")
            notes = gradio.Textbox(label="Notes", lines=3)
            gradio.Button("Predict all").click(
                lambda paths: _predict_many(first, paths), files, [archive, notes], api_name="predict_many"
            )
    return app


def serve(viewers: list[Viewer], *, port: int | None = None, open_browser: bool = False) -> None:
    """Run the application until it is stopped, for this machine only: it listens on the loopback address.

    Args:
        viewers: one model, or two.
        port: None for the first free one from 7860 on.
        open_browser: show it at once.
    """
    build(viewers).queue(max_size=32).launch(
        server_name="127.0.0.1",
        server_port=port,
        inbrowser=open_browser,
        share=False,
        max_file_size=_UPLOAD_LIMIT,
        show_error=True,
    )


def _prediction(viewer: Viewer, image: Any, threshold: Any, api_name: str) -> None:
    """Add what a model predicts: a picture, the classes, and the time."""
    shown = gradio.Image(label=viewer.name, interactive=False, visible=viewer.predictor.task != "image-classification")
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

    image.change(_caught(predict, len(outputs)), [image, threshold], outputs, api_name=api_name)
    threshold.release(_caught(predict, len(outputs)), [image, threshold], outputs, api_visibility="private")


def _sampling(viewer: Viewer, path: str, x: int, y: int, stage: float, block: float, layers: float, group: str) -> Any:
    number = None if group == "all" else int(group)
    return viewer.sampling(path, (x, y), int(stage), int(block), int(layers), number)


def _clicked(event: gradio.SelectData) -> tuple[int, int]:
    return event.index[0], event.index[1]


def _caught(function: Callable[..., Any], outputs: int = 1) -> Callable[..., Any]:
    """Return a function that shows a ValueError as a message, and does nothing without an image."""

    def call(path: str | None, *values: Any) -> Any:
        if path is None:
            return None if outputs == 1 else (None,) * outputs
        try:
            return function(path, *values)
        except ValueError as error:
            raise gradio.Error(str(error)) from error

    return call


def _predict_many(viewer: Viewer, paths: list[str] | None) -> tuple[str | None, str]:
    """Write what `hf-internimage predict` writes, as a .zip file."""
    if not paths:
        raise gradio.Error("Choose images first.")
    if len(paths) > _MOST_FILES:
        raise gradio.Error(f"{len(paths)} images are too many; at most {_MOST_FILES} at once.")
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
            raise gradio.Error("None of the files could be used. " + " ".join(left_out[:3]))
        files.finish(left_out)
        # Gradio copies the archive to its own folder of downloads.
        archive = shutil.make_archive(str(Path(tempfile.mkdtemp(), "predictions")), "zip", scratch)
    return archive, "\n".join([f"{files.count} images", *(f"left out: {problem}" for problem in left_out)])


__all__ = ["build", "serve"]
