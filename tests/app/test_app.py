# SPDX-License-Identifier: MIT
"""The application, called as a program calls it: over HTTP, by Gradio's client."""

import contextlib
import runpy
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio_client
import httpx
import numpy as np
import pytest
from PIL import Image
from support.golden_data import awaken, tiny_config
from support.golden_detectors import golden_dino
from support.golden_segmenters import golden_segmenter

from hf_internimage import (
    InternImageDetectionImageProcessor,
    InternImageForImageClassification,
    InternImageSegmentationImageProcessor,
    app,
    predict,
)
from hf_internimage.app.viewer import Viewer
from hf_internimage.hub.repository import default_image_processor
from hf_internimage_cli.main import main

NAMES = ["cat", "dog", "cow", "hen", "pig"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models of three tasks, and pictures."""
    folder = tmp_path_factory.mktemp("app")
    model = awaken(InternImageForImageClassification(tiny_config(image_size=64, id2label=dict(enumerate(NAMES)))))
    model.save_pretrained(folder / "classifier")
    default_image_processor(model.config).save_pretrained(folder / "classifier")
    size = {"shortest_edge": 64, "longest_edge": 256}
    golden_segmenter("upernet_tiny").save_pretrained(folder / "segmenter")
    InternImageSegmentationImageProcessor(size=size).save_pretrained(folder / "segmenter")
    golden_dino().save_pretrained(folder / "detector")
    InternImageDetectionImageProcessor(size=size).save_pretrained(folder / "detector")
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@contextlib.contextmanager
def served(*models):
    """A client of the application, which runs in this process."""
    pages = app.build([Viewer(str(model)) for model in models])
    _, address, _ = pages.queue().launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        yield gradio_client.Client(address, verbose=False)
    finally:
        pages.close()


@pytest.fixture(scope="module")
def classifier(folders):
    with served(folders / "classifier", folders / "classifier") as client:
        yield client


def upload(path):
    return gradio_client.handle_file(str(path))


@pytest.mark.slow
def test_classes_are_those_of_predict(classifier, folders):
    _, classes, time = classifier.predict(upload(folders / "photo.png"), 0.3, api_name="/predict")
    (expected,) = predict(folders / "classifier", folders / "photo.png")
    assert classes["label"] == expected.labels[0]
    got = {entry["label"]: entry["confidence"] for entry in classes["confidences"]}
    assert got == pytest.approx(dict(zip(expected.labels, expected.scores, strict=True)))
    assert "ms for 120x90 pixels" in time
    assert classifier.predict(upload(folders / "photo.png"), 0.3, api_name="/predict_2")[1] == classes


@pytest.mark.slow
def test_sampling_points_and_fields_are_drawn(classifier, folders):
    photo = upload(folders / "photo.png")
    view = classifier.predict(photo, api_name="/model_view")
    assert Image.open(view).size == (64, 64)

    def points(*values):
        return np.asarray(Image.open(classifier.predict(photo, *values, api_name="/sampling_points")))

    assert points(10, 20, 3, 1, 1, "all").shape == (450, 450, 3)
    assert (points(10, 20, 3, 1, 1, "all") != points(50, 20, 3, 1, 1, "all")).any()
    assert (points(10, 20, 3, 2, 2, "all") != points(10, 20, 3, 2, 1, "all")).any()
    fields = Image.open(classifier.predict(photo, 2, api_name="/receptive_field"))
    assert fields.width > 2 * fields.height
    assert Image.open(classifier.predict(photo, "cow", api_name="/class_activation")).size == (450, 450)


@pytest.mark.slow
def test_many_images_come_as_an_archive(classifier, folders):
    files = [upload(folders / "photo.png"), upload(folders / "broken.jpg")]
    archive, notes = classifier.predict(files, api_name="/predict_many")
    with zipfile.ZipFile(archive) as content:
        assert {"predictions.csv", "predictions.json", "contact_sheet.jpg"} <= set(content.namelist())
        table = content.read("predictions.csv").decode()
    assert "photo.png" in table
    assert str(Path(archive).anchor) + "tmp" not in table
    assert notes.startswith("1 images")
    assert "left out: broken.jpg: cannot be decoded" in notes


@pytest.mark.slow
def test_two_users_at_once_get_their_own_answers(classifier, folders, tmp_path):
    paths = [folders / "photo.png", tmp_path / "other.png"]
    Image.new("RGB", (70, 50), (250, 120, 10)).save(paths[1])
    expected = [predict(folders / "classifier", path)[0] for path in paths]
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda path: classifier.predict(upload(path), 0.3, api_name="/predict")[1], [*paths, *paths])
        )
    for answer, prediction in zip(answers, [*expected, *expected], strict=True):
        got = {entry["label"]: entry["confidence"] for entry in answer["confidences"]}
        assert got == pytest.approx(dict(zip(prediction.labels, prediction.scores, strict=True)))


@pytest.mark.slow
def test_a_wrong_file_is_one_line(classifier, folders):
    with pytest.raises(Exception, match=r"^broken\.jpg: cannot be decoded \(no known format\)"):
        classifier.predict(upload(folders / "broken.jpg"), 0.3, api_name="/predict")


@pytest.mark.slow
def test_files_of_the_machine_cannot_be_read(classifier, folders):
    address = classifier.src + "gradio_api/call/predict"
    for path in (folders / "photo.png", Path(__file__), "pyproject.toml"):
        data = [{"path": str(path), "meta": {"_type": "gradio.FileData"}}, 0.3]
        event = httpx.post(address, json={"data": data}).json()["event_id"]
        answer = httpx.get(f"{address}/{event}").text
        assert "event: error" in answer
        assert "confidences" not in answer


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmenter", "detector"])
def test_other_tasks_draw_their_results(folders, task):
    with served(folders / task) as client:
        picture, classes, _ = client.predict(upload(folders / "photo.png"), 0.05, api_name="/predict")
        assert min(Image.open(picture).size) >= 90
        assert classes["confidences"]
        assert client.predict(upload(folders / "photo.png"), 10, 20, 3, 1, 1, "all", api_name="/sampling_points")


def test_the_slider_hides_objects(folders):
    viewer = Viewer(str(folders / "detector"))
    image, detection, _ = viewer.predict(str(folders / "photo.png"))
    few, all_ = (viewer.shares(detection, threshold) for threshold in (float(detection.scores.max()), 0.0))
    assert 1 <= len(few) <= len(all_)
    assert max(few.values()) == pytest.approx(float(detection.scores.max()))
    assert viewer.draw(image, detection, 1.1).tobytes() != viewer.draw(image, detection, 0.0).tobytes()


def test_huge_images_are_refused(folders, tmp_path):
    Image.new("L", (8000, 7500)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match=r"^huge\.png: is too large \(8000x7500 pixels"):
        Viewer(str(folders / "classifier")).predict(str(tmp_path / "huge.png"))


@pytest.mark.slow
def test_a_space_runs_as_it_is(folders, tmp_path, monkeypatch, capsys):
    assert main(["app", str(folders / "classifier"), "--space", str(tmp_path / "space")]) == 0
    assert {path.name for path in (tmp_path / "space").iterdir()} == {
        "app.py",
        "requirements.txt",
        "README.md",
        "model",
    }
    monkeypatch.chdir(tmp_path / "space")
    space = runpy.run_path("app.py")
    _, address, _ = space["app"].launch(prevent_thread_lock=True, quiet=True)
    try:
        client = gradio_client.Client(address, verbose=False)
        assert client.predict(upload(folders / "photo.png"), 0.3, api_name="/predict")[1]["label"] in NAMES
    finally:
        space["app"].close()
    assert main(["app", str(folders / "classifier"), "--space", str(tmp_path / "space")]) == 1
    assert "is no empty folder" in capsys.readouterr().err


def test_mistakes_are_one_line(capsys):
    assert main(["app", "./absent"]) == 2
    assert main(["app", ".", "--compare", "me/b", "--space", "c"]) == 2
    assert "--space takes one model" in capsys.readouterr().err
