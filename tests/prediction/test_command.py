# SPDX-License-Identifier: MIT
"""`hf-internimage predict`: what it writes, prints and refuses."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image
from support.prediction_models import classifier, cut_jpeg, dino, picture, upernet, write_pictures, write_video

from hf_internimage.image_files import MAX_PIXELS
from hf_internimage.prediction import Predictor
from hf_internimage.prediction.tasks import SEGMENTATIONS
from hf_internimage_cli.main import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    makers = {"classifier": classifier, "upernet": upernet, "dino": dino}
    return {name: str(make(folder / name)) for name, make in makers.items()}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of photos in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "photos", 4)
    return tmp_path / "photos"


def read_json(path):
    return json.loads(Path(path).read_text())


@pytest.mark.parametrize(
    ("kind", "options", "written"),
    [
        ("classifier", ["--top-k", "2"], {"predictions.csv", "predictions.json", "contact_sheet.jpg"}),
        ("upernet", [], {"predictions.json", "legend.png", "label_maps", "overlays"}),
        ("dino", ["--threshold", "0.01"], {"predictions.json", "images.json", "boxes"}),
    ],
)
def test_each_task_writes_its_files(kind, options, written, models, photos, capsys):
    assert main(["predict", models[kind], "photos", *options]) == 0
    assert {path.name for path in Path("predictions").iterdir()} == written
    for folder in written & {"label_maps", "overlays", "boxes"}:
        assert len(list(Path("predictions", folder).iterdir())) == 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"from {models[kind]}: 5 classes, {lines[0].split()[5]} M parameters, on cpu in float32")
    assert lines[1].startswith("4 images in ")
    assert lines[1].endswith(" images/s, with backend cpu of the operator")
    assert lines[-1].startswith("written to predictions: predictions.")


def test_label_maps_have_the_size_of_the_images(models, photos):
    assert main(["predict", models["upernet"], "photos/*.png", "--output", "out", "--flip"]) == 0
    for path in photos.iterdir():
        with Image.open(path) as image, Image.open(Path("out", "label_maps", path.name)) as label_map:
            assert label_map.size == image.size


def test_a_damaged_file_is_named_counted_and_ends_with_1(models, photos, capsys):
    (photos / "02.png").write_bytes(cut_jpeg())
    assert main(["predict", models["classifier"], "photos", "--batch-size", "3"]) == 1
    printed = capsys.readouterr()
    assert "left out: photos/02.png: cannot be decoded" in printed.err
    assert "left out: 1 file that could not be used, named above" in printed.out
    content = read_json("predictions/predictions.json")
    assert [row["path"] for row in content["images"]] == [f"photos/0{index}.png" for index in (0, 1, 3)]
    assert content["left_out"][0].startswith("photos/02.png: cannot be decoded")


def test_only_damaged_files_write_nothing(models, photos, capsys):
    for path in photos.iterdir():
        path.write_bytes(b"")
    assert main(["predict", models["classifier"], "photos"]) == 1
    assert capsys.readouterr().err.endswith(
        "error: No image could be read of 4 files, named above; nothing was written.\n"
    )
    assert not Path("predictions").exists()


def test_an_interruption_keeps_what_was_predicted(models, photos, capsys, monkeypatch):
    predict_inputs = Predictor.predict_inputs

    def interrupted(self, inputs):
        for number, pair in enumerate(predict_inputs(self, inputs)):
            if number == 2:
                raise KeyboardInterrupt
            yield pair

    monkeypatch.setattr(Predictor, "predict_inputs", interrupted)
    assert main(["predict", models["classifier"], "photos"]) == 130
    assert capsys.readouterr().err.endswith("interrupted; what was predicted until then is in the output folder.\n")
    assert len(read_json("predictions/predictions.json")["images"]) == 2


def test_earlier_predictions_stay(models, photos):
    for _ in range(2):
        assert main(["predict", models["classifier"], "photos/00.png"]) == 0
    assert Path("predictions-2", "predictions.csv").is_file()
    before = Path("predictions", "predictions.csv").read_bytes()
    assert main(["predict", models["classifier"], "photos/01.png", "--output", "predictions"]) == 2
    assert Path("predictions", "predictions.csv").read_bytes() == before


def test_frames_of_a_video(models, photos):
    pytest.importorskip("av")
    write_video(photos / "film.mkv", range(0, 70, 10))
    assert main(["predict", models["dino"], "photos/film.mkv", "--every", "3"]) == 0
    names = sorted(path.name for path in Path("predictions", "boxes").iterdir())
    assert names == ["film_000000.jpg", "film_000003.jpg", "film_000006.jpg"]
    assert [image["frame"] for image in read_json("predictions/images.json")["images"]] == [0, 3, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["me/out", "gone.png"], "gone.png: there is no such file or folder, and no file of such a pattern."),
        (["./gone", "."], "./gone is no folder; give that of a saved model, or a repository on the Hub, owner/name."),
        (
            ["me/out", ".", "--output", "."],
            "--output_dir . is not an empty folder; name a new one, or remove it first.",
        ),
        (["me/out", ".", "--crop-size", "512"], "sliding windows need both --crop_size and --stride."),
        (["out", ".", "--threshold", "50"], "argument --threshold: '50' is not a number from 0 to 1"),
        (["out", ".", "--scale-ratios", "1", "nan"], "argument --scale_ratios: 'nan' is not a number above 0"),
        (["out", ".", "--every", "0"], "argument --every: '0' is not a positive number"),
        (["out", ".", "--dtype", "half"], "argument --dtype: invalid choice: 'half'"),
    ],
)
def test_wrong_use_is_refused_without_torch(arguments, message, tmp_path):
    picture().save(tmp_path / "a.png")
    program = (
        "import sys; from hf_internimage_cli.main import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    command = [sys.executable, "-c", program, "predict", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(f"hf-internimage predict: error: {message}")
    assert result.stderr.count("\n") == 1


def test_help_says_what_is_written(capsys):
    assert main(["predict", "--help"]) == 0
    text = capsys.readouterr().out
    assert f"--segmentation {{{','.join(SEGMENTATIONS)}}}" in text
    assert f"default: {MAX_PIXELS}" in text
    for part in ("contact_sheet.jpg", "label_maps/", "COCO results", "--every", "examples:"):
        assert part in text


@pytest.mark.slow
def test_nothing_of_the_extra_train_is_needed(models, photos):
    program = """
        import sys
        for name in ("accelerate", "datasets", "evaluate", "faster_coco_eval", "kornia", "matplotlib", "scipy"):
            sys.modules[name] = None
        from hf_internimage_cli.main import main
        for number, model in enumerate(sys.argv[1:]):
            assert main(["predict", model, "photos", "--output", f"out{number}"]) == 0
    """
    command = [sys.executable, "-c", textwrap.dedent(program), *models.values()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in Path().glob("out*")) == ["out0", "out1", "out2"]
