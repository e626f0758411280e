# SPDX-License-Identifier: MIT
"""scripts/run_image_classification.py: its arguments and recipes, and whole runs on scikit-learn's digits."""

import csv
import json
import shutil
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from support.golden_data import tiny_config
from support.loading import WITHOUT_THE_PACKAGE, run_python
from support.loopback_hub import loopback_hub  # noqa: F401
from support.paths import RECIPE_FOLDER
from support.training_scripts import as_arguments, only_labels
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    CLIPImageProcessorPil,
    pipeline,
)

from hf_internimage import InternImageConfig, InternImageForImageClassification, InternImageImageProcessorPil
from hf_internimage.training import command_line
from hf_internimage.training.classification import main as script
from hf_internimage.training.images import target_size

RECIPES = sorted((RECIPE_FOLDER / "classification").glob("*.yaml"))
SMALL = '{"channels": 16, "depths": [1, 1], "groups": [1, 2]}'


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of images for each of three digits: 40 to train on, 20 to validate with, 20 to test with."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for digit, name in enumerate(("zero", "one", "two")):
        scans = data.images[data.target == digit]
        for split, start, end in (("train", 0, 40), ("validation", 40, 60), ("test", 60, 80)):
            (folder / split / name).mkdir(parents=True)
            for index in range(start, end):
                scan = Image.fromarray((scans[index] * (255 / 16)).astype("uint8"))
                scan.save(folder / split / name / f"{index:03d}.png")
    return folder


def settings(digits, output, **changes):
    values = {
        "train_dir": digits / "train",
        "validation_dir": digits / "validation",
        "output_dir": output,
        "data_cache_dir": output.parent / "data_cache",
        "config_overrides": SMALL,
        "image_size": 16,
        "num_train_epochs": 6,
        "per_device_train_batch_size": 20,
        "learning_rate": 5e-3,
        "warmup_steps": 2,
        "logging_steps": 3,
        "erase_probability": 0,
        "rand_augment_magnitude": 0,
        "color_jitter": 0,
        "crop_scale_min": 0.6,
        "flip_probability": 0,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        **changes,
    }
    return as_arguments(values)


def accuracy(output, prefix="eval"):
    return json.loads((output / f"{prefix}_evaluation.json").read_text())["metrics"]["top1"]


# ---- Arguments and recipes ----


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_settings_of_the_script(recipe, tmp_path):
    arguments = script.read_arguments(
        [str(recipe), "--train_dir", "images", "--output_dir", str(tmp_path), "--bf16", "false"]
    )
    for name, value in yaml.safe_load(recipe.read_text()).items():
        if name == "bf16":
            continue
        holder = next(group for group in vars(arguments).values() if hasattr(group, name))
        assert getattr(holder, name) == value, name
    assert arguments.training.lr_scheduler_type == "cosine"
    assert arguments.training.max_grad_norm == 5.0
    assert arguments.training.weight_decay == 0.05
    assert arguments.training.adam_beta2 == 0.999
    assert arguments.training.adam_epsilon == 1e-8


# The table of the original's recipes: OpenGVLab/InternImage@31c962d, classification/config.py and configs/.
TABLE = {
    # size: image size, epochs, images a step, rate, drop path, smoothing, mixup, cutmix, erase, layer decay, DCN
    "t": (224, 300, 4096, 5e-4, 0.1, 0.1, 0.8, 1.0, 0.25, 1.0, 1.0),
    "s": (224, 300, 4096, 5e-4, 0.4, 0.1, 0.8, 1.0, 0.25, 1.0, 1.0),
    "b": (224, 300, 4096, 5e-4, 0.5, 0.1, 0.8, 1.0, 0.25, 1.0, 1.0),
    "l": (384, 20, 512, 2e-5, 0.1, 0.3, 0.0, 0.0, 0.0, 0.9, 0.1),
    "xl": (384, 20, 512, 2e-5, 0.2, 0.3, 0.0, 0.0, 0.0, 0.9, 0.1),
    "h": (640, 20, 512, 2e-5, 0.2, 0.3, 0.0, 0.0, 0.0, 0.9, 0.1),
    "g": (512, 20, 512, 2e-5, 0.4, 0.3, 0.0, 0.0, 0.0, 0.9, 0.1),
}


@pytest.mark.parametrize("size", TABLE)
def test_recipes_are_the_originals(size, tmp_path):
    arguments = script.read_arguments(
        [
            str(RECIPE_FOLDER / "classification" / f"{size}.yaml"),
            "--train_dir=images",
            f"--output_dir={tmp_path}",
            "--bf16=false",
        ]
    )
    training, recipe, augmentation = arguments.training, arguments.recipe, arguments.augmentation
    assert (
        arguments.model.image_size,
        training.num_train_epochs,
        recipe.total_train_batch_size,
        training.learning_rate,
        arguments.model.drop_path_rate,
        training.label_smoothing_factor,
        recipe.mixup_alpha,
        recipe.cutmix_alpha,
        augmentation.erase_probability,
        recipe.layer_decay,
        recipe.geometry_lr_scale,
    ) == TABLE[size]
    scratch = size in "tsb"
    warmup = 20 if scratch else 2
    assert training.get_warmup_steps(training.num_train_epochs * 1000) == pytest.approx(warmup * 1000, abs=2)
    rates = (recipe.warmup_learning_rate, recipe.minimum_learning_rate)
    assert rates == ((5e-7, 5e-6) if scratch else (0, 0))
    assert recipe.learning_rate_batch_size == 512
    assert (recipe.ema_decay, recipe.ema_warmup) == (0.9999, False)
    assert (augmentation.rand_augment_magnitude, augmentation.rand_augment_std) == (9, 0.5)
    assert training.gradient_checkpointing is not scratch
    if scratch:
        assert InternImageConfig.from_size(arguments.model.size).image_size == arguments.model.image_size
    else:
        assert arguments.model.model_name_or_path.startswith(f"OpenGVLab/internimage_{size}_")


def test_batch_of_all_devices(tmp_path, monkeypatch):
    arguments = ["--train_dir=x", f"--output_dir={tmp_path}", "--use_cpu=true", "--total_train_batch_size=4096"]
    arguments.append("--per_device_train_batch_size=128")
    assert script.read_arguments(arguments).training.gradient_accumulation_steps == 32
    monkeypatch.setattr(command_line, "count_devices", lambda use_cpu: 8)
    assert script.read_arguments(arguments).training.gradient_accumulation_steps == 4
    monkeypatch.undo()
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert command_line.count_devices(True) == 16


def test_later_settings_win(tmp_path):
    text = "learning_rate: 1.0e-3\nseed: 5\ntrain_dir: images\nconfig_overrides: {depths: [1]}\n"
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.json").write_text('{"learning_rate": 2e-3, "num_train_epochs": 3}')
    files = [str(tmp_path / "a.yaml"), str(tmp_path / "b.json")]
    arguments = script.read_arguments([*files, "--num_train_epochs", "4", f"--output_dir={tmp_path}"])
    assert (arguments.training.learning_rate, arguments.training.seed, arguments.training.num_train_epochs) == (
        2e-3,
        5,
        4,
    )
    assert json.loads(arguments.model.config_overrides) == {"depths": [1]}
    assert arguments.training.do_train
    assert arguments.training.do_eval
    assert not arguments.training.do_predict
    assert not script.read_arguments([*files, "--do_predict", f"--output_dir={tmp_path}"]).training.do_train


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wrong.yaml"], "wrong.yaml has the unknown setting 'learning_rat'"),
        (["list.yaml"], "list.yaml holds no settings"),
        (["broken.json"], "broken.json cannot be read"),
        (["absent.yaml"], "absent.yaml cannot be read"),
        (["--train_dir=x", "late.yaml"], "The settings file late.yaml comes after an option; put settings files first"),
        ([], "No data: set dataset_name, or train_dir"),
        (["--train_dir=x", "--mixup_alpha=-1"], "mixup_alpha is -1.0"),
        (["--train_dir=x", "--erase_probability=2"], "erase_probability is 2.0"),
        (["--train_dir=absent"], "absent"),
        (["--train_dir=images", "--config_overrides={]"], "config_overrides is no JSON"),
        (["--train_dir=images", "--config_overrides=[1]"], r"config_overrides is [1], expected a JSON object"),
        (["--train_dir=images", "--size=q"], "size is 'q'"),
        (["--train_dir=images", "--model_type=convnext", "--size=t"], "size=t is InternImage's"),
        (["--train_dir=images", "--model_type=nothing"], "nothing"),
        (["--train_dir=images", "--total_train_batch_size=30"], "total_train_batch_size=30 is no multiple of 8 images"),
        (["--train_dir=images", "--resume_from_checkpoint=images"], "holds no complete checkpoint"),
        (["--train_dir=images", "--train_val_split=0", "--early_stopping_patience=2"], "needs validation data"),
        (["--train_dir=images", "--do_predict"], "There are no data for test"),
        (["--train_dir=shards", "--streaming", "--train_val_split=0"], "set max_steps"),
        (["--train_dir=shards", "--streaming", "--train_val_split=0", "--max_steps=3"], "A stream has no epochs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(arguments, message, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("wrong.yaml").write_text("learning_rat: 1\n")
    Path("list.yaml").write_text("- 1\n")
    Path("broken.json").write_text('{"seed": ')
    shutil.copytree(digits / "train", "images")
    Path("shards").mkdir()
    from datasets import load_dataset

    load_dataset("imagefolder", data_dir="images", split="train", cache_dir="cache").to_parquet("shards/a.parquet")
    capsys.readouterr()
    common = ["--output_dir=out", "--use_cpu=true", "--image_size=16", "--data_cache_dir=cache", "--report_to=none"]
    assert script.main([*arguments, *common]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(Path().glob("out/*.safetensors"))


# ---- Models and processors ----


def model_arguments(**kwargs):
    """Make arguments of the script with those of the model alone, enough for `build_model` and `build_processor`."""
    return SimpleNamespace(model=script.ModelArguments(**kwargs))


def test_new_models():
    names = ["cat", "dog"]
    arguments = model_arguments(config_overrides=SMALL, image_size=32, drop_path_rate=0.2)
    model = script.build_model(arguments.model, only_labels(names))
    assert type(model) is InternImageForImageClassification
    assert (model.config.channels, model.config.image_size, model.config.drop_path_rate) == (16, 32, 0.2)
    assert model.config.id2label == {0: "cat", 1: "dog"}
    assert target_size(script.build_processor(model_arguments(image_size=32), model)) == (32, 32)
    overrides = '{"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}'
    arguments = model_arguments(model_type="convnext", config_overrides=overrides)
    other = script.build_model(arguments.model, only_labels(names, multi_label=True))
    assert other.config.problem_type == "multi_label_classification"
    processor = script.build_processor(model_arguments(image_size=40), other)
    assert isinstance(processor, CLIPImageProcessorPil)
    ours = InternImageImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40})
    picture = Image.effect_mandelbrot((57, 83), (-2, -1, 1, 1), 90)
    assert torch.equal(
        processor(picture, return_tensors="pt").pixel_values, ours(picture, return_tensors="pt").pixel_values
    )


def test_checkpoint_gets_a_new_head_and_size(tmp_path):
    before = InternImageForImageClassification(tiny_config(num_labels=5))
    before.save_pretrained(tmp_path)
    InternImageImageProcessorPil().save_pretrained(tmp_path)
    arguments = model_arguments(model_name_or_path=str(tmp_path), image_size=48)
    model = script.build_model(arguments.model, only_labels(["a", "b", "c"]))
    assert model.head.out_features == 3
    assert torch.equal(model.model.patch_embed.conv1.weight, before.model.patch_embed.conv1.weight)
    assert target_size(script.build_processor(arguments, model)) == (48, 48)
    arguments = model_arguments(model_name_or_path=str(tmp_path))
    assert target_size(script.build_processor(arguments, model)) == (224, 224)


# ---- Whole runs ----


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "digits-small"
    arguments = settings(digits, output, test_dir=digits / "test", ema_decay=0.6, mixup_alpha=0.1, license="mit")
    assert script.main([*arguments, "--do_train", "--do_eval", "--do_predict", "--report_to=tensorboard"]) == 0
    return output


def test_a_run_writes_everything(trained):
    names = {path.name for path in trained.iterdir()}
    assert {
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md", "modeling_internimage.py",
        "training.png", "eval_confusions.png", "eval_mistakes.png", "eval_predictions.csv", "eval_evaluation.json",
        "test_confusions.png", "test_mistakes.png", "test_predictions.csv", "test_evaluation.json",
        "train_results.json", "eval_results.json", "test_results.json", "all_results.json", "trainer_state.json",
        "runs",
    } <= names  # fmt: skip
    assert list(trained.glob("runs/*/events*"))
    assert accuracy(trained) > 0.8
    for name in names:
        if name.endswith(".png"):
            assert min(Image.open(trained / name).size) > 200
    rows = list(csv.DictReader((trained / "test_predictions.csv").open()))
    assert len(rows) == 60
    assert all(Path(row["file"]).parent.name == row["label"] for row in rows)
    right = sum(row["label"] == row["found"] for row in rows)
    assert right / 60 == pytest.approx(accuracy(trained, "test"))
    card = ModelCard.load(trained / "README.md")
    assert card.data.license == "mit"
    assert card.data.eval_results[0].metric_value == pytest.approx(accuracy(trained), abs=1e-6)
    assert "0.005" in card.text


def test_the_model_of_a_run_works(trained, digits):
    classify = pipeline("image-classification", model=str(trained))
    files = sorted((digits / "test").glob("*/*.png"))
    predicted = [best[0]["label"] for best in classify([str(file) for file in files], top_k=1)]
    rows = {row["file"]: row["found"] for row in csv.DictReader((trained / "test_predictions.csv").open())}
    assert predicted == [rows[str(file)] for file in files]


def test_evaluation_only_gives_the_same(trained, digits, tmp_path):
    output = tmp_path / "again"
    arguments = settings(digits, output, model_name_or_path=trained, train_dir=None, config_overrides=None)
    assert script.main([*arguments, "--do_eval"]) == 0
    assert accuracy(output) == accuracy(trained)
    assert not (output / "model.safetensors").exists()


def test_evaluation_of_other_classes_is_refused(trained, digits, tmp_path, capsys):
    """Without training, a head for other classes would be random, and one in another order wrong."""
    arguments = settings(digits, tmp_path, model_name_or_path=trained, train_dir=None, config_overrides=None)
    shutil.copytree(digits / "validation", tmp_path / "other")
    (tmp_path / "other" / "zero").rename(tmp_path / "other" / "a zero")
    assert script.main([*arguments, "--do_eval", f"--validation_dir={tmp_path / 'other'}"]) == 1
    assert "use `hf-internimage evaluate`, which matches them by name" in capsys.readouterr().err
    assert script.main([*settings(digits, tmp_path, train_dir=None), "--do_eval"]) == 1
    assert "there has to be a checkpoint" in capsys.readouterr().err


def test_resuming_gives_the_same_bits(trained, digits, tmp_path):
    """An interrupted run continues from its last complete checkpoint, with the same augmentation and mixing."""
    output = tmp_path / trained.name
    shutil.copytree(trained, output)
    checkpoints = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert len(checkpoints) == 2
    (checkpoints[-1] / "trainer_state.json").unlink()  # as if it was killed while saving
    (output / "model.safetensors").unlink()
    arguments = settings(
        digits, output, test_dir=digits / "test", ema_decay=0.6, mixup_alpha=0.1, license="mit",
        data_cache_dir=trained.parent / "data_cache",
    )  # fmt: skip
    assert script.main([*arguments, "--do_train"]) == 0
    expected, got = load_file(trained / "model.safetensors"), load_file(output / "model.safetensors")
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def test_training_anew_does_not_overwrite(trained, digits, capsys):
    before = (trained / "model.safetensors").read_bytes()
    assert script.main([*settings(digits, trained), "--resume_from_checkpoint=false"]) == 1
    assert "go on from it, start anew with --overwrite_output_dir, or choose another" in capsys.readouterr().err
    assert (trained / "model.safetensors").read_bytes() == before


def test_fine_tuning_with_the_recipe(trained, digits, tmp_path):
    output = tmp_path / "tuned"
    recipe = str(RECIPE_FOLDER / "classification" / "finetune.yaml")
    arguments = settings(digits, output, model_name_or_path=trained, config_overrides=None, num_train_epochs=1)
    arguments += ["--dataloader_num_workers=2", "--class_weighting", "--bad_images=list"]
    assert script.main([recipe, *arguments]) == 0
    assert accuracy(output) > 0.8


def test_other_models_by_the_same_command(digits, tmp_path):
    output = tmp_path / "convnext"
    overrides = '{"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}'
    arguments = settings(digits, output, config_overrides=overrides, ema_decay=0.6, num_train_epochs=1)
    assert script.main([*arguments, "--model_type=convnext"]) == 0
    model = AutoModelForImageClassification.from_pretrained(output)
    assert model.config.id2label[2] == "zero"
    assert target_size(AutoImageProcessor.from_pretrained(output)) == (16, 16)


def test_streaming(digits, tmp_path):
    from datasets import load_dataset

    data = load_dataset("imagefolder", data_dir=str(digits / "train"), split="train", cache_dir=str(tmp_path / "cache"))
    (tmp_path / "shards").mkdir()
    for index in range(4):
        data.shard(4, index).to_parquet(tmp_path / "shards" / f"{index}.parquet")
    arguments = settings(
        digits, tmp_path / "out", train_dir=tmp_path / "shards", max_steps=30, eval_strategy="steps", eval_steps=15,
        save_strategy="steps", save_steps=15, dataloader_num_workers=2, num_train_epochs=None,
    )  # fmt: skip
    assert script.main([*arguments, "--streaming"]) == 0
    assert accuracy(tmp_path / "out") > 0.6


def test_several_labels_an_image(digits, tmp_path):
    """Each digit has its own label, and "loop" where there is one."""
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        rows = []
        for file in sorted((digits / split).glob("*/*.png")):
            name = f"{file.parent.name}-{file.name}"
            shutil.copyfile(file, tmp_path / split / name)
            labels = [file.parent.name, *(["loop"] if file.parent.name != "one" else [])]
            rows.append(json.dumps({"file_name": name, "labels": labels}))
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(rows))
    arguments = settings(
        digits, tmp_path / "out", train_dir=tmp_path / "train", validation_dir=tmp_path / "validation", mixup_alpha=0.1
    )
    assert script.main([*arguments, "--class_weighting"]) == 0
    metrics = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert metrics["eval_mean_average_precision"] > 0.8
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.problem_type == "multi_label_classification"
    assert sorted(model.config.id2label.values()) == ["loop", "one", "two", "zero"]
    best = {entry["label"]: entry["score"] for entry in pipeline("image-classification", model=str(tmp_path / "out"))(
        str(next((tmp_path / "validation").glob("zero-*.png"))))}  # fmt: skip
    assert best["zero"] + best["loop"] > 1.1  # each label has its own probability


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.slow
def test_unreadable_images_are_named(workers, digits, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(digits / "train", images)
    broken = images / "one" / "007.png"
    broken.write_bytes((images / "one" / "008.png").read_bytes()[:60])
    arguments = settings(digits, tmp_path / "out", train_dir=images, dataloader_num_workers=workers)
    assert script.main(arguments) == 1
    error = capsys.readouterr().err
    assert "one/007.png: cannot be decoded" in error.splitlines()[-1]
    (images / "two" / "003.png").write_bytes(b"")
    assert script.main([*arguments, "--bad_images=list"]) == 1
    error = capsys.readouterr().err
    assert "2 images cannot be used" in error
    assert "one/007.png" in error
    assert "two/003.png: is empty" in error


@pytest.mark.slow
def test_pushing_and_loading_without_the_package(digits, tmp_path, loopback_hub):  # noqa: F811
    environment = loopback_hub.environment(tmp_path / "home")
    arguments = settings(digits, tmp_path / "out", num_train_epochs=2)
    arguments += ["--push_to_hub=true", "--hub_model_id=hf-internimage-tests/digits", "--hub_private_repo=true"]
    run_python(
        f"""
        from hf_internimage_cli.main import main

        assert main(["train", "classification", *{arguments!r}]) == 0
        """,
        **environment,
    )
    files = loopback_hub.files("hf-internimage-tests/digits")
    assert {"README.md", "config.json", "model.safetensors", "modeling_internimage.py"} <= set(files)
    assert not any(name.startswith(("checkpoint-", "runs")) or name.endswith((".png", ".csv")) for name in files)
    picture = next((digits / "test" / "two").glob("*.png"))
    printed = run_python(
        WITHOUT_THE_PACKAGE
        + textwrap.dedent(f"""
        from transformers import pipeline

        classify = pipeline("image-classification", model="hf-internimage-tests/digits", trust_remote_code=True)
        print([(entry["label"], round(entry["score"], 5)) for entry in classify({str(picture)!r})])
        """),
        **environment,
    )
    classify = pipeline("image-classification", model=str(tmp_path / "out"))
    expected = [(entry["label"], round(entry["score"], 5)) for entry in classify(str(picture))]
    assert printed.strip().splitlines()[-1] == str(expected)
