# SPDX-License-Identifier: MIT
"""scripts/run_semantic_segmentation.py: its arguments and recipes, and whole runs on a few tiny scenes."""

import contextlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from support.paths import RECIPE_FOLDER
from support.segmentation_scenes import NAMES, scene, write, write_all
from support.segmentation_scenes import arguments as data_arguments
from support.training_scripts import as_arguments, only_labels
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    TrainingArguments,
    UperNetForSemanticSegmentation,
)

from hf_internimage import InternImageConfig, InternImageSegmentationImageProcessor, heads
from hf_internimage.checkpoints.classifiers import CHECKPOINTS
from hf_internimage.training.command_line import json_object
from hf_internimage.training.metric_modules import load_metric_module
from hf_internimage.training.segmentation import main as script
from hf_internimage.training.segmentation import plots as overlays
from hf_internimage.training.segmentation.data import load_data
from hf_internimage.training.segmentation.evaluation import InferenceArguments, evaluate_and_report
from hf_internimage.training.segmentation.evaluation import _segment as segment_rows
from hf_internimage.training.segmentation.trainer import MEAN_IOU, SegmentationTrainer
from hf_internimage.training.system_trainer import SystemRecipe

RECIPES = sorted((RECIPE_FOLDER / "segmentation").glob("*.yaml"))
SMALL = '{"channels": 16, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}'


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("scenes"))


def settings(scenes, output, **changes):
    values = {
        "train_dir": scenes / "train",
        "validation_dir": scenes / "validation",
        "label_names_file": scenes / "names.txt",
        "output_dir": output,
        "config_overrides": SMALL,
        "head_overrides": '{"hidden_size": 32, "auxiliary_channels": 16}',
        "shortest_edge": 32,
        "size_divisor": 8,
        "crop_size": 32,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        **changes,
    }
    return as_arguments(values)


def scores(output):
    return json.loads((output / "eval_evaluation.json").read_text())


# ---- Arguments and recipes ----


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_settings_of_the_script(recipe, tmp_path):
    arguments = script.read_arguments([str(recipe), "--train_dir=images", f"--output_dir={tmp_path}", "--bf16=false"])
    for name, value in yaml.safe_load(recipe.read_text()).items():
        holder = next(group for group in vars(arguments).values() if hasattr(group, name))
        if name != "bf16":
            assert getattr(holder, name) == value, name
    assert arguments.training.lr_scheduler_type == "polynomial"
    assert arguments.training.batch_eval_metrics


# OpenGVLab/InternImage@31c962d, segmentation/configs/ade20k.
TABLE = {
    # recipe: crop, long edge, drop path, rate, layer decay, clipping, steps
    "upernet_t": (512, 2048, 0.2, 6e-5, 1.0, 0.0, 160_000),
    "upernet_s": (512, 2048, 0.3, 6e-5, 1.0, 0.0, 160_000),
    "upernet_b": (512, 2048, 0.4, 6e-5, 1.0, 0.0, 160_000),
    "upernet_l": (640, 2560, 0.4, 2e-5, 0.94, 0.1, 160_000),
    "upernet_xl": (640, 2560, 0.4, 2e-5, 0.94, 0.1, 160_000),
    "upernet_h": (896, 3584, 0.5, 2e-5, 0.95, 0.1, 160_000),
    "mask2former_h": (896, 3584, 0.5, 1e-5, 0.95, 0.1, 80_000),
}


@pytest.mark.parametrize("recipe", TABLE)
def test_recipes_are_the_originals(recipe, tmp_path):
    file = RECIPE_FOLDER / "segmentation" / f"{recipe}.yaml"
    arguments = script.read_arguments([str(file), "--train_dir=images", f"--output_dir={tmp_path}", "--bf16=false"])
    training, augmentation = arguments.training, arguments.augmentation
    crop, *_ = TABLE[recipe]
    assert augmentation.crop == (crop, crop)
    assert (
        arguments.model.shortest_edge,
        arguments.model.longest_edge,
        arguments.model.drop_path_rate,
        training.learning_rate,
        arguments.recipe.layer_decay,
        training.max_grad_norm,
        training.max_steps,
    ) == TABLE[recipe]
    assert training.get_warmup_steps(training.max_steps) == 1500
    assert (arguments.recipe.warmup_start_ratio, arguments.recipe.polynomial_power) == (1e-6, 1.0)
    assert (training.weight_decay, arguments.recipe.total_train_batch_size) == (0.05, 16)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (augmentation.scale_min, augmentation.scale_max, augmentation.crop_most_of_a_class) == (0.5, 2.0, 0.75)
    assert (augmentation.flip_probability, augmentation.color_distortion, arguments.data.reduce_labels) == (
        0.5,
        True,
        True,
    )
    size = recipe.rpartition("_")[2]
    owner, _, name = arguments.model.backbone.partition("/")
    assert owner == "OpenGVLab"
    assert next(entry for entry in CHECKPOINTS if entry.name == name).size == size
    fields = json_object("", arguments.model.config_overrides)
    assert fields == ({} if size == "h" else {"layer_scale": 1.0})
    config = heads.head_config(
        arguments.model.head, InternImageConfig.from_size(size, **fields),
        **json_object("", arguments.model.head_overrides),
    )  # fmt: skip
    if recipe == "mask2former_h":
        assert (config.feature_size, config.mask_feature_size, config.hidden_dim) == (1024, 1024, 1024)
        assert (config.num_attention_heads, config.encoder_feedforward_dim, config.dim_feedforward) == (32, 4096, 4096)
        assert (config.encoder_layers, config.decoder_layers, config.num_queries) == (6, 10, 200)
        assert config.dropout == 0
    else:
        assert (config.hidden_size, config.auxiliary_channels, config.auxiliary_loss_weight) == (512, 256, 0.4)
        assert config.auxiliary_in_channels in (None, config.backbone_config.hidden_sizes[2])
        assert list(config.pool_scales) == [1, 2, 3, 6]


def test_windows_have_a_height_and_a_width():
    inference = script.InferenceArguments(inference="slide", inference_crop=[32, 64], inference_stride=[16, 48])
    segmenter = inference.segmenter(None, InternImageSegmentationImageProcessor())
    assert (segmenter.crop_size, segmenter.stride) == ((32, 64), (16, 48))
    square = script.InferenceArguments(inference="slide", inference_crop=[32], inference_stride=16)
    segmenter = square.segmenter(None, InternImageSegmentationImageProcessor())
    assert (segmenter.crop_size, segmenter.stride) == ((32, 32), (16, 16))


def test_refuses_three_sides_and_too_many_classes(tmp_path, scenes):
    with pytest.raises(ValueError, match=r"inference_crop is \[1, 2, 3\], expected one number, or height and width"):
        script.InferenceArguments(inference="slide", inference_crop=[1, 2, 3], inference_stride=[1])
    with pytest.raises(ValueError, match="There are 256 classes, expected at most 255"):
        load_data(data_arguments(scenes, label_names_file=None), label_names=[str(index) for index in range(256)])


def test_windows_are_refused_where_every_process_has_a_part_of_the_model():
    slide = script.InferenceArguments(inference="slide", inference_crop=[8], inference_stride=[8])
    trainer, data = SimpleNamespace(is_fsdp_enabled=True), SimpleNamespace(validation=[], label_names=NAMES)
    with pytest.raises(ValueError, match="inference=slide needs as many windows in every process"):
        evaluate_and_report(trainer, data, "validation", None, model_name="model", inference=slide)


def test_the_small_recipe_is_small():
    arguments = script.read_arguments(
        [str(RECIPE_FOLDER / "segmentation" / "scenes.yaml"), "--train_dir=images", "--use_cpu=true"]
    )
    with torch.device("meta"):
        model = script.build_model(arguments.model, only_labels(["background", *"abcdefghij"]))
    assert 1e6 < model.num_parameters() < 2.5e6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_names_file": None}, "Set label_names_file"),
        ({"train_dir": None, "validation_dir": None}, "No data"),
        ({"train_dir": None}, "There are no training data"),
        ({"backbone": "somewhere", "size": "t"}, "backbone and size are both set"),
        ({"head": "detr"}, "head is 'detr', expected one of upernet"),
        ({"inference": "windows"}, "inference is 'windows', expected 'whole' or 'slide'"),
        ({"inference": "slide"}, "inference=slide, which needs both"),
        ({"inference_crop": 16}, "are for inference=slide"),
        ({"inference": "slide", "inference_crop": 16, "inference_stride": 20}, "leaves gaps"),
        ({"per_device_train_batch_size": 9}, "There are 8 training images for batches of 9, and dataloader_drop_last"),
        ({"do_predict": True}, "use do_eval"),
        ({"do_eval": True}, "Without training there has to be a checkpoint"),
    ],
    ids=str,
)
def test_refuses(changes, message, scenes, tmp_path, capsys):
    assert script.main(settings(scenes, tmp_path / "out", **changes)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("out/*.safetensors"))


# ---- Whole runs ----


LONG = {
    "num_train_epochs": 30, "eval_strategy": "steps", "eval_steps": 30, "save_strategy": "steps", "save_steps": 30,
    "scale_min": 0.8, "scale_max": 1.3, "ema_decay": 0.5, "learning_rate": 5e-3, "logging_steps": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "trained"
    assert script.main(settings(scenes, output, **LONG)) == 0
    return output


def test_what_a_training_leaves(trained, scenes):
    evaluation = scores(trained)
    assert evaluation["metrics"]["mean_iou"] > 0.7
    assert evaluation["samples"] == 3
    assert set(evaluation["class_iou"]) == set(NAMES)
    assert evaluation["image_size"] == [32, 128]
    assert json.loads((trained / "eval_results.json").read_text()).keys() >= {"eval_mean_iou", "eval_overall_accuracy"}
    history = json.loads((trained / "trainer_state.json").read_text())["log_history"]
    assert sum("eval_mean_iou" in entry for entry in history) == 2
    assert "import hf_internimage" in (trained / "README.md").read_text()
    with Image.open(trained / "training.png") as curves:
        assert min(curves.size) > 300
    assert sorted(path.name for path in (trained / "overlays").iterdir()) == ["00000.png", "00001.png", "00002.png"]


def test_scores_are_those_of_the_saved_model_at_the_images_own_size(trained, scenes):
    """They are computed again step by step with transformers: processor, model, logits at the image's size."""
    processor = AutoImageProcessor.from_pretrained(trained)
    assert type(processor) is InternImageSegmentationImageProcessor
    model = AutoModelForSemanticSegmentation.from_pretrained(trained).eval()
    assert type(model) is UperNetForSemanticSegmentation
    assert [model.config.id2label[index] for index in range(3)] == NAMES
    metric = load_metric_module(MEAN_IOU, num_labels=3)
    for path in sorted((scenes / "validation" / "images").iterdir()):
        truth = np.asarray(Image.open(scenes / "validation" / "masks" / path.name))
        inputs = processor(Image.open(path), return_tensors="pt")
        assert inputs.pixel_values.shape[-2:] == (32, 40)  # 40x48 -> 32x38 -> 32x40
        with torch.no_grad():
            outputs = model(**inputs)
        (predicted,) = processor.post_process_semantic_segmentation(outputs, [truth.shape])
        metric.add(predicted.numpy(), truth)
    expected = metric.compute()
    for name in ("mean_iou", "mean_accuracy", "overall_accuracy"):
        assert scores(trained)["metrics"][name] == pytest.approx(expected[name], abs=1e-12)


def test_trainer_keeps_the_card(trained):
    before = (trained / "README.md").read_text()
    SegmentationTrainer.create_model_card(SimpleNamespace(args=SimpleNamespace(output_dir=str(trained))))
    assert (trained / "README.md").read_text() == before
    assert ModelCard(before).data.pipeline_tag == "image-segmentation"


@pytest.mark.slow
def test_resuming_gives_the_same_bits(trained, scenes, tmp_path):
    """An interrupted run continues from its last complete checkpoint, with the same augmentation and any workers."""
    output = tmp_path / trained.name
    shutil.copytree(trained, output)
    checkpoints = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert len(checkpoints) == 2
    (checkpoints[-1] / "trainer_state.json").unlink()  # as if it was killed while saving
    (output / "model.safetensors").unlink()
    arguments = settings(scenes, output, **LONG, dataloader_num_workers=1)
    assert script.main([*arguments, "--do_train"]) == 0
    expected, got = load_file(trained / "model.safetensors"), load_file(output / "model.safetensors")
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def test_evaluation_alone(trained, scenes, tmp_path):
    common = settings(
        scenes, tmp_path / "whole", train_dir=None, label_names_file=None, config_overrides=None, head_overrides=None,
        shortest_edge=None, crop_size=None, model_name_or_path=trained, overlays=0,
    )  # fmt: skip
    assert script.main([*common, "--do_eval"]) == 0
    assert scores(tmp_path / "whole")["metrics"] == scores(trained)["metrics"]
    assert scores(tmp_path / "whole")["model"] == str(trained)
    slide = ["--inference=slide", "--inference_crop=32", "--inference_stride=16", "--tta_ratios", "1", "1.5"]
    assert script.main([*common, "--do_eval", *slide, "--tta_flip", f"--output_dir={tmp_path / 'slide'}"]) == 0
    assert scores(tmp_path / "slide")["metrics"] != scores(trained)["metrics"]
    assert scores(tmp_path / "slide")["inference"]["tta_ratios"] == [1.0, 1.5]
    assert not any((tmp_path / "slide" / "overlays").iterdir())
    assert not list(tmp_path.glob("*/*.safetensors"))


def test_evaluation_alone_computes_in_the_dtype_it_names(trained, scenes, tmp_path, monkeypatch):
    """Where no training has wrapped the model before."""
    seen, run = set(), torch.nn.Conv2d._conv_forward

    def convolution(*inputs):
        output = run(*inputs)
        seen.add(output.dtype)
        return output

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", convolution)
    common = settings(
        scenes, tmp_path, train_dir=None, label_names_file=None, config_overrides=None, head_overrides=None,
        shortest_edge=None, crop_size=None, model_name_or_path=trained, overlays=0,
    )  # fmt: skip
    assert script.main([*common, "--do_eval", "--bf16"]) == 0
    assert json.loads((tmp_path / "eval_evaluation.json").read_text())["dtype"] == "bfloat16"
    assert torch.bfloat16 in seen


def test_evaluation_reduces_labels_as_the_checkpoint_does(trained, scenes, tmp_path):
    """Maps whose classes begin at 1 get the same scores if the checkpoint's image processor reduces labels."""
    shutil.copytree(trained, tmp_path / "model")
    fields = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps({**fields, "do_reduce_labels": True}))
    shutil.copytree(scenes / "validation", tmp_path / "validation")
    for path in (tmp_path / "validation" / "masks").iterdir():
        classes = np.asarray(Image.open(path))
        Image.fromarray(np.where(classes == 255, 0, classes + 1).astype(np.uint8)).save(path)
    common = settings(
        scenes, tmp_path / "out", train_dir=None, label_names_file=None, config_overrides=None, head_overrides=None,
        shortest_edge=None, crop_size=None, overlays=0, model_name_or_path=tmp_path / "model",
        validation_dir=tmp_path / "validation",
    )  # fmt: skip
    assert script.main([*common, "--do_eval"]) == 0
    assert scores(tmp_path / "out")["metrics"] == scores(trained)["metrics"]


def test_an_image_without_a_labelled_pixel_costs_nothing(trained, tmp_path):
    model = AutoModelForSemanticSegmentation.from_pretrained(trained)
    arguments = script.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    run = SegmentationTrainer(model=model, args=arguments, recipe=script.SystemRecipe())
    labels = torch.full((2, 32, 32), 255)
    loss = run.compute_loss(model, {"pixel_values": torch.randn(2, 3, 32, 32), "labels": labels})
    loss.backward()
    assert loss == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())
    labels[0, 0, 0] = 1
    assert run.compute_loss(model, {"pixel_values": torch.randn(2, 3, 32, 32), "labels": labels}) > 0


def test_a_batch_of_several_sizes_is_evaluated_as_single_images(trained, tmp_path, caplog):
    for index, (height, width) in enumerate([(40, 48), (48, 40), (40, 48), (40, 64), (48, 40)]):
        write(tmp_path / str(index), 1, index, height=height, width=width)
        for kind in ("images", "masks"):
            (tmp_path / "scenes" / kind).mkdir(parents=True, exist_ok=True)
            shutil.move(tmp_path / str(index) / kind / f"{index:02d}.png", tmp_path / "scenes" / kind)
    results = []
    for batch_size in (1, 4):
        arguments = script.read_arguments(
            [
                *(f"--model_name_or_path={trained}", f"--validation_dir={tmp_path / 'scenes'}", "--do_eval"),
                *("--use_cpu=true", "--report_to=none", f"--output_dir={tmp_path / 'out'}"),
                f"--per_device_eval_batch_size={batch_size}",
            ]
        )
        data = load_data(arguments.data, splits=("validation",), label_names=NAMES)
        model = AutoModelForSemanticSegmentation.from_pretrained(trained)
        processor = script.build_processor(arguments, model)
        trainer = script.build_trainer(arguments, data, model, processor)
        results.append(trainer.evaluate())
    for name in ("eval_loss", "eval_mean_iou", "eval_overall_accuracy"):
        assert results[0][name] == pytest.approx(results[1][name], abs=1e-5), name
    assert results[0]["eval_mean_iou"] > 0.3
    assert caplog.text.count("have several sizes: each size is evaluated by itself") == 1


def test_evaluation_refuses_other_classes(trained, scenes, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("background\ndisc\nsquare\n")
    arguments = settings(
        scenes, tmp_path / "out", label_names_file=tmp_path / "names.txt", config_overrides=None,
        model_name_or_path=trained,
    )  # fmt: skip
    assert script.main([*arguments, "--do_eval"]) == 1
    assert "are not the 3 of label_names_file (background, disc, square...) in that order" in capsys.readouterr().err


@pytest.mark.slow
def test_other_classes_and_a_backbone_of_a_checkpoint(trained, scenes, tmp_path):
    """A segmenter is trained on fewer classes, and a new head on its backbone's weights."""
    names = tmp_path / "names.txt"
    names.write_text("square\ndisc\n")
    common = {"label_names_file": names, "config_overrides": None, "reduce_labels": True, "max_steps": 1}
    arguments = settings(
        scenes, tmp_path / "segmenter", **common, model_name_or_path=trained, head_overrides=None, drop_path_rate=0.1,
        learning_rate=0.0, shortest_edge=None,
    )  # fmt: skip
    assert script.main(arguments) == 0
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "segmenter")
    assert (model.config.num_labels, model.config.backbone_config.drop_path_rate) == (2, 0.1)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "segmenter")
    assert (processor.do_reduce_labels, dict(processor.size)["shortest_edge"]) == (True, 32)
    model.backbone.save_pretrained(tmp_path / "weights")
    arguments = settings(
        scenes,
        tmp_path / "backbone",
        **common,
        backbone=tmp_path / "weights",
        learning_rate=0.0,
        gradient_checkpointing=True,
    )
    assert script.main(arguments) == 0
    expected = load_file(trained / "model.safetensors")
    for folder in ("segmenter", "backbone"):
        got = load_file(tmp_path / folder / "model.safetensors")
        for name in (name for name in expected if name.startswith("backbone.")):
            assert torch.equal(got[name], expected[name]), name
    assert not torch.equal(got["decode_head.bottleneck.conv.weight"], expected["decode_head.bottleneck.conv.weight"])


def test_queries_on_several_gpus_need_a_launcher(tmp_path):
    training = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    training._setup_devices  # noqa: B018
    training._n_gpu = 2

    class Queries(torch.nn.Linear):
        def forward(self, pixel_values, mask_labels):
            return None

    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2"):
        SegmentationTrainer(model=Queries(1, 1), args=training, recipe=SystemRecipe())
    SegmentationTrainer(model=torch.nn.Linear(1, 1), args=training, recipe=SystemRecipe())


def test_mask2former(scenes, tmp_path):
    overrides = {
        "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 2, "encoder_layers": 1,
        "encoder_feedforward_dim": 16, "decoder_layers": 2, "dim_feedforward": 16, "num_queries": 4,
        "train_num_points": 64,
    }  # fmt: skip
    shutil.copytree(scenes / "train", tmp_path / "train")
    blank = Image.new("L", (48, 40), 255)
    blank.save(tmp_path / "train" / "masks" / "00.png")  # an image of which nothing is known
    output = tmp_path / "out"
    arguments = settings(
        scenes, output, head="mask2former", head_overrides=json.dumps(overrides), train_dir=tmp_path / "train"
    )
    assert script.main(arguments) == 0
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 4
    assert all(np.isfinite(losses))
    assert 0 <= scores(output)["metrics"]["mean_iou"] <= 1
    assert "Mask2FormerForUniversalSegmentation" in (output / "README.md").read_text()


# ---- Overlays ----


def test_pictures_have_a_panel_for_image_truth_and_prediction(tmp_path):
    image, mask = scene(0)
    labels = np.asarray(mask)
    overlays.draw_masks(image, labels, labels[::-1], ["background", "$a 猫", "disc"], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as drawn:
        width, height = drawn.size
    assert 1000 < width < 1300
    assert 350 < height < 600


@pytest.mark.parametrize(("count", "processes"), [(3, 2), (4, 2), (1, 2), (5, 3)])
def test_every_image_counts_once_in_several_processes(count, processes, tmp_path):
    """The last turn of some processes repeats an image, which is not counted."""
    labels = np.arange(count)  # an image of one pixel each, of its own class
    transform = SimpleNamespace(read=lambda row: (row, np.full((1, 1), row["row"]), b""))
    counted = []
    for rank in range(processes):
        args = SimpleNamespace(world_size=processes, process_index=rank, output_dir=str(tmp_path))
        trainer = SimpleNamespace(args=args, accelerator=SimpleNamespace(autocast=contextlib.nullcontext))
        metric = SimpleNamespace(add=lambda classes, truth: counted.append((classes.item(), truth.item())))
        segment_rows(
            trainer, Dataset.from_dict({"row": labels}), transform, lambda row: torch.tensor([[row["row"]]]), metric,
            [], InferenceArguments(overlays=0),
        )  # fmt: skip
    assert sorted(counted) == [(label, label) for label in labels]
