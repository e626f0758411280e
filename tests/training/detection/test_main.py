# SPDX-License-Identifier: MIT
"""scripts/run_object_detection.py: its arguments and recipes, and whole runs on a few tiny scenes."""

import json
import shutil
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from support.detection_scenes import NAMES, coco, load, scene, write
from support.loading import WITHOUT_THE_PACKAGE, run_python
from support.loopback_hub import loopback_hub  # noqa: F401
from support.paths import RECIPE_FOLDER
from support.training_scripts import as_arguments, only_labels
from transformers import AutoModelForObjectDetection, TrainingArguments, pipeline
from transformers.utils import ModelOutput

from hf_internimage import InternImageConfig, InternImageDetectionImageProcessor, heads
from hf_internimage.checkpoints.classifiers import CHECKPOINTS
from hf_internimage.models.modeling_internimage import InternImageBackbone
from hf_internimage.training.detection import main as script
from hf_internimage.training.detection import plots as box_overlays
from hf_internimage.training.detection.coco_map import CocoMap
from hf_internimage.training.detection.data import DetectionDataArguments, collate, load_data
from hf_internimage.training.detection.evaluation import curves
from hf_internimage.training.detection.plots import draw_boxes
from hf_internimage.training.detection.trainer import DetectionTrainer
from hf_internimage.training.system_trainer import SystemRecipe

RECIPES = sorted((RECIPE_FOLDER / "detection").glob("*.yaml"))
SMALL = '{"channels": 16, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}'
HEAD = {
    "d_model": 32, "num_feature_levels": 3, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 12,
    "num_denoising": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    coco(folder / "train", 8)
    coco(folder / "validation", 4, first=8, ids=(1, 2))
    return folder


# ---- Batches and measures ----


def test_batches_are_padded():
    examples = [
        {"pixel_values": torch.ones(3, 40, 70), "labels": {"boxes": torch.zeros(2, 4)}},
        {"pixel_values": torch.ones(3, 64, 30), "labels": {"boxes": torch.zeros(0, 4)}},
    ]
    batch = collate(examples)
    assert batch["pixel_values"].shape == (2, 3, 64, 96)
    assert batch["pixel_mask"].shape == (2, 64, 96)
    assert torch.equal(batch["pixel_values"][:, 0].long(), batch["pixel_mask"])
    assert batch["pixel_mask"][0].sum() == 40 * 70
    assert batch["pixel_mask"][0, :40, :70].all()
    assert [len(label["boxes"]) for label in batch["labels"]] == [2, 0]
    processor = InternImageDetectionImageProcessor()
    padded = processor.pad(
        [example["pixel_values"].numpy() for example in examples], processor_size(64, 96), return_mask=True
    )
    assert np.array_equal(np.stack(padded[0]), batch["pixel_values"])
    assert np.array_equal(np.stack(padded[1]), batch["pixel_mask"])


def processor_size(height, width):
    from transformers.image_utils import SizeDict

    return SizeDict(height=height, width=width)


class Echo(torch.nn.Module):
    """A detector that returns the annotated boxes."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values, pixel_mask, labels):
        logits, boxes = torch.full((len(labels), 3, 2), -9.0), torch.full((len(labels), 3, 4), 0.5)
        for row, label in enumerate(labels):
            count = len(label["boxes"])
            logits[row, range(count), label["class_labels"]] = 4.0
            boxes[row, :count] = label["boxes"]
        return ModelOutput(loss=self.weight.sum() + len(labels), logits=logits, pred_boxes=boxes)


@pytest.mark.parametrize("batch", [1, 3])
def test_detections_are_measured_at_the_images_own_size(batch, tmp_path):
    """Images of several shapes are resized and padded; a detector that returns the annotations scores 1."""
    coco(tmp_path / "validation", 4)
    content = json.loads((tmp_path / "validation" / "annotations.json").read_text())
    for index, (width, height) in enumerate([(48, 90), (130, 40), (64, 64)]):
        image, boxes = scene(index, width, height)
        image.save(tmp_path / "validation" / "images" / f"{index:02d}.png")
        content["images"][index].update(width=width, height=height)
        for annotation, box in zip(content["annotations"][2 * index :], boxes, strict=False):
            annotation["bbox"] = box
    write(tmp_path / "validation", content)
    data = load_data(DetectionDataArguments(validation_dir=str(tmp_path / "validation")), splits=["validation"])
    processor = InternImageDetectionImageProcessor(size={"shortest_edge": 57, "longest_edge": 90})
    training = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=batch, remove_unused_columns=False, use_cpu=True, report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = DetectionTrainer(
        model=Echo(), args=training, recipe=SystemRecipe(), data_collator=collate, processing_class=processor,
        compute_metrics=CocoMap(data.validation, data.label_names),
    )  # fmt: skip
    prediction = trainer.predict(data.validation.with_transform(data.evaluation_transform(processor)))
    assert prediction.metrics["test_map"] == pytest.approx(1)
    detected = prediction.predictions[:, :2, 2:]
    expected = np.array([row["boxes"] for row in data.validation])
    expected[..., 2:] += expected[..., :2]
    order = np.argsort(detected[..., 0], 1)[..., None]
    np.testing.assert_allclose(np.take_along_axis(detected, order, 1), expected, atol=1e-3)
    assert prediction.label_ids.reshape(-1).tolist() == [0, 1, 2, 3]


# ---- Arguments and recipes ----


# The table of the original's recipes: OpenGVLab/InternImage@31c962d, detection/configs/coco.
TABLE = {
    # steps or epochs, drops, layer decay, backbone, sampling, weight decay, drop path, sides, checkpointing
    "dino_t": (12, [11 / 12], 0.9, 1, 1, 1e-4, 0.2, (800, 1333), True),
    "dino_l": (12, [11 / 12], 0.9, 1, 1, 1e-4, 0.4, (800, 1333), False),
    "dino_l_backbone_lr": (12, [11 / 12], 1, 0.1, 1, 0.05, 0.4, (800, 1333), False),
    "dino_h": (20000, [], 0.94, 1, 1e-3, 1e-4, 0.5, (1000, 2000), True),
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_settings_of_the_script(recipe, tmp_path):
    arguments = script.read_arguments(
        [str(recipe), "--train_dir", "images", "--output_dir", str(tmp_path), "--use_cpu=true"]
    )
    for name, value in yaml.safe_load(recipe.read_text()).items():
        holder = next(group for group in vars(arguments).values() if hasattr(group, name))
        assert getattr(holder, name) == value, name
    if arguments.model.backbone:
        assert arguments.model.backbone.rpartition("/")[2] in {entry.name for entry in CHECKPOINTS}


@pytest.mark.parametrize("name", TABLE)
def test_recipes_are_the_originals(name, tmp_path):
    recipe = RECIPE_FOLDER / "detection" / f"{name}.yaml"
    arguments = script.read_arguments([str(recipe), "--train_dir=images", f"--output_dir={tmp_path}", "--use_cpu=true"])
    training, own, augmentation = arguments.training, arguments.recipe, arguments.augmentation
    expected = TABLE[name]
    assert (training.max_steps if training.max_steps > 0 else training.num_train_epochs) == expected[0]
    assert own.lr_drops == pytest.approx(expected[1], abs=1e-6)
    rates = (own.layer_decay, own.backbone_lr_scale, own.sampling_lr_scale, training.weight_decay)
    assert rates == expected[2:6]
    assert arguments.model.drop_path_rate == expected[6]
    assert (arguments.model.shortest_edge, arguments.model.longest_edge) == expected[7]
    assert training.gradient_checkpointing is expected[8]
    assert arguments.model.max_detections == (None if name == "dino_t" else 300)
    assert training.learning_rate == 1e-4
    assert (training.warmup_steps, own.warmup_start_ratio, training.max_grad_norm) == (500, 1e-3, 0.1)
    assert (own.total_train_batch_size, own.learning_rate_batch_size, own.ema_decay) == (16, None, 0)
    assert not arguments.data.train_without_objects
    assert augmentation.flip_probability == 0.5
    if name == "dino_h":
        assert (augmentation.crop_probability, augmentation.resize_count) == (0, 0)
        assert (augmentation.resize_min, augmentation.resize_max) == (0.6, 1.8)
        assert json.loads(arguments.model.head_overrides) == {"num_denoising": 1000}
    else:
        assert (augmentation.crop_probability, augmentation.resize_count) == (0.5, 11)
        assert (augmentation.resize_min, augmentation.resize_max) == (0.6, 1)
        # the classifier of T has no layer scale, the detector does; that of L has one
        scale = json.loads(arguments.model.config_overrides or "{}").get("layer_scale")
        assert scale == (1.0 if name == "dino_t" else None)


def settings(scenes, output, **changes):
    values = {
        "train_dir": scenes / "train",
        "validation_dir": scenes / "validation",
        "output_dir": output,
        "config_overrides": SMALL,
        "head_overrides": json.dumps(HEAD),
        "shortest_edge": 40,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "logging_steps": 1,
        "overlays": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        **changes,
    }
    return as_arguments(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "yolo"}, "head is 'yolo', expected one of dino, detr"),
        ({"head": "rt-dert"}, "head is 'rt-dert'; did you mean rt_detr"),
        (
            {"head": "rt_detr", "head_overrides": "{}", "shortest_edge": 32},
            "32x32 pixels have only 21 positions",
        ),
        ({"size": "t", "backbone": "here"}, "backbone and size are both set"),
        ({"longest_edge": 30}, "longest_edge is 30: set shortest_edge"),
        ({"train_dir": None, "validation_dir": None}, "No data: set dataset_name, or train_dir"),
        ({"dataset_name": "here"}, "dataset_name and train_dir are both set"),
        ({"train_dir": None, "train_annotations": "a.json"}, "train_annotations is set without train_dir"),
        ({"train_dir": None}, "There are no training data"),
        ({"train_dir": "absent"}, "absent"),
        ({"box_format": "cxcywh"}, "box_format is 'cxcywh'"),
        ({"max_detections": 0}, "max_detections is 0"),
        ({"head": "rt_detr", "head_overrides": "{}", "max_detections": 5}, "leave out max_detections"),
        ({"head_overrides": "[1]"}, "head_overrides is [1], expected a JSON object"),
        ({"head_overrides": '{"d_model": 33}'}, "d_model is 33"),
        ({"lr_drops": 1.5}, "lr_drops is [1.5]"),
        ({"do_eval": True}, "there has to be a checkpoint"),
        ({"do_train": True, "do_predict": True}, "There are no test data"),
    ],
    ids=str,
)
def test_refuses(changes, message, scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert script.main(settings(scenes, tmp_path / "out", **changes)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("out/*.safetensors"))


# ---- Models and processors ----


def model_arguments(**kwargs):
    """Make arguments of the script with those of the model alone, enough for `build_model` and `build_processor`."""
    return SimpleNamespace(model=script.ModelArguments(**{"config_overrides": SMALL, **kwargs}))


def test_dino_on_a_backbone_gets_its_weights(tmp_path):
    source = InternImageBackbone(InternImageConfig(**json.loads(SMALL)))
    source.save_pretrained(tmp_path)
    arguments = model_arguments(
        backbone=str(tmp_path),
        config_overrides='{"layer_scale": 1.0}',
        drop_path_rate=0.3,
        head_overrides=json.dumps(HEAD),
    )
    model = script.build_model(arguments.model, only_labels(NAMES))
    assert type(model).__name__ == "InternImageDinoForObjectDetection"
    config = model.config.backbone_config
    assert (config.drop_path_rate, config.layer_scale, config.depths) == (0.3, 1.0, [1, 1, 1, 1])
    assert config.out_features == ["stage2", "stage3", "stage4"]
    assert model.config.id2label == {0: "square", 1: "disc"}
    assert torch.equal(model.backbone.patch_embed.conv1.weight, source.patch_embed.conv1.weight)
    processor = script.build_processor(model_arguments(shortest_edge=100), model)
    assert dict(processor.size) == {"shortest_edge": 100, "longest_edge": 167}
    assert processor.top_k == 100
    arguments = model_arguments(shortest_edge=100, longest_edge=120, max_detections=300)
    processor = script.build_processor(arguments, model)
    assert processor.to_dict()["top_k"] == 300
    assert dict(processor.size) == {"shortest_edge": 100, "longest_edge": 120}
    assert dict(script.build_processor(model_arguments(), model).size) == {"shortest_edge": 800, "longest_edge": 1333}


def tiny_trainer(head, overrides, scenes, tmp_path):
    """Build the trainer as the script does, with gradient checkpointing."""
    options = settings(
        scenes, tmp_path / "out", head=head, head_overrides=json.dumps(overrides), shortest_edge=64,
        gradient_checkpointing=True,
    )  # fmt: skip
    arguments = script.read_arguments(options)
    loaded = load(train_dir=scenes / "train", validation_dir=scenes / "validation")
    model = script.build_model(arguments.model, only_labels(NAMES))
    processor = script.build_processor(arguments, model)
    return script.build_trainer(arguments, loaded, model, processor), arguments.training


@pytest.mark.parametrize("head", ["dino", "rt_detr"])
def test_gradient_checkpointing_is_asked_for_once(head, scenes, tmp_path):
    """It is switched on in the backbone if the head does not support it, else in all of the model by Trainer."""
    trainer, training = tiny_trainer(head, HEAD if head == "dino" else RT_DETR, scenes, tmp_path)
    blocks = [block for level in heads.find_backbone(trainer.model)[1].levels for block in level.blocks]
    assert all(block.gradient_checkpointing for block in blocks) is (head != "dino")
    names = ("gradient_checkpointing", "activation_checkpointing")
    assert {getattr(training, name, head == "dino") for name in names} == {head == "dino"}


def test_batches_without_an_object_and_several_processes(scenes, tmp_path):
    """RT-DETR's embedding of denoising queries gets no gradient from such a batch, which DDP has to allow."""
    trainer, training = tiny_trainer("rt_detr", RT_DETR, scenes, tmp_path)
    assert training.ddp_find_unused_parameters
    none = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    batch = {"pixel_values": torch.rand(2, 3, 64, 64), "labels": [none] * 2}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(
            trainer.model.train(), **trainer.accelerator.ddp_handler.to_kwargs()
        )
        for _ in range(2):  # DDP speaks up in the step after
            model(**batch).loss.backward()
    finally:
        dist.destroy_process_group()
    absent = [name for name, parameter in trainer.model.named_parameters() if parameter.grad is None]
    assert absent == ["model.denoising_class_embed.weight"]


def test_several_gpus_need_a_launcher(tmp_path):
    training = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    training._setup_devices  # noqa: B018
    training._n_gpu = 2
    with pytest.raises(ValueError, match=r"sees 2 GPUs, .* torchrun --nproc-per-node 2"):
        DetectionTrainer(model=Echo(), args=training, recipe=SystemRecipe())


def test_trainer_keeps_the_card(tmp_path):
    (tmp_path / "README.md").write_text("ours")
    training = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    DetectionTrainer(model=Echo(), args=training, recipe=SystemRecipe()).create_model_card()
    assert (tmp_path / "README.md").read_text() == "ours"


def test_every_head_has_an_image_processor():
    for head in script.HEADS:
        processor = script.build_processor(model_arguments(head=head, shortest_edge=64), None)
        assert processor.do_normalize
        assert list(processor.image_mean) == list(InternImageDetectionImageProcessor.image_mean)
        assert 64 in dict(processor.size).values()
        assert hasattr(processor, "post_process_object_detection")
        assert head == "dino" or head in heads.HEADS


# ---- Whole runs ----


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "shapes"
    arguments = settings(scenes, output, test_dir=scenes / "train", ema_decay=0.5, license="mit")
    assert script.main([*arguments, "--do_train", "--do_eval", "--do_predict"]) == 0
    return output


def metrics(output, prefix="eval"):
    return json.loads((output / f"{prefix}_evaluation.json").read_text())["metrics"]


def test_a_run_writes_everything(trained):
    names = {path.name for path in trained.iterdir()}
    assert {
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md", "training.png", "overlays",
        "eval_evaluation.json", "test_evaluation.json", "train_results.json", "eval_results.json", "test_results.json",
        "all_results.json", "trainer_state.json", "modeling_internimage_dino.py",
        "image_processing_internimage_detection.py",
    } <= names  # fmt: skip
    names = sorted(path.name for path in (trained / "overlays").iterdir())
    assert names == [
        "eval_000000_08.png", "eval_000003_11.png", "test_000000_00.png", "test_000007_07.png",
    ]  # fmt: skip
    assert min(Image.open(trained / "overlays" / names[0]).size) > 300
    evaluation = json.loads((trained / "eval_evaluation.json").read_text())
    assert evaluation["samples"] == 4
    assert evaluation["image_size"] == [40, 67]
    assert {"map", "map_50", "map_75", "mar_100", "loss"} <= set(evaluation["metrics"])
    assert set(evaluation["map_per_class"]) == set(NAMES)
    state = json.loads((trained / "trainer_state.json").read_text())
    assert any({"eval_map", "eval_map_small"} <= entry.keys() for entry in state["log_history"])
    drawn = {
        name for entry in curves(state["log_history"]) for name in entry if name.startswith(("eval_map", "eval_mar"))
    }
    assert drawn == {"eval_map", "eval_map_50", "eval_map_75", "eval_mar_100"}
    card = ModelCard.load(trained / "README.md")
    assert card.data.license == "mit"
    assert "average precision" in card.text


def test_the_model_of_a_run_works(trained, scenes):
    image = Image.open(scenes / "train" / "images" / "03.png")
    detections = pipeline("object-detection", model=str(trained))(image, threshold=0.0)
    assert detections
    assert {entry["label"] for entry in detections} <= set(NAMES)
    width, height = image.size
    assert all(-1 <= entry["box"]["xmin"] <= entry["box"]["xmax"] <= width + 1 for entry in detections)
    assert all(-1 <= entry["box"]["ymin"] <= entry["box"]["ymax"] <= height + 1 for entry in detections)


def test_evaluation_alone_gives_the_same(trained, scenes, tmp_path):
    """Batches of another size and classes in another order in the file change nothing."""
    coco(tmp_path / "validation", 4, first=8, ids=(9, 5))
    arguments = settings(
        scenes, tmp_path / "again", model_name_or_path=trained, train_dir=None, config_overrides=None,
        head_overrides=None, shortest_edge=None, validation_dir=tmp_path / "validation", per_device_eval_batch_size=1,
        overlays=0,
    )  # fmt: skip
    assert script.main([*arguments, "--do_eval"]) == 0
    assert json.loads((tmp_path / "again" / "eval_evaluation.json").read_text())["model"] == str(trained)
    first, again = metrics(trained), metrics(tmp_path / "again")
    assert first.keys() == again.keys()
    for name in first.keys() - {"loss"}:
        assert again[name] == pytest.approx(first[name], abs=1e-6), name
    assert not (tmp_path / "again" / "model.safetensors").exists()
    assert not (tmp_path / "again" / "overlays").exists()


def test_evaluation_needs_the_models_classes(trained, scenes, tmp_path, capsys):
    """Without training, a classifier for other classes would be random."""
    shutil.copytree(trained, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    arguments = settings(
        scenes, tmp_path / "out", model_name_or_path=tmp_path / "model", train_dir=None, config_overrides=None,
        head_overrides=None, overlays=0,
    )  # fmt: skip
    for names, message in (
        (["disc", "owl"], "'validation' has objects of the class 'square', which is none of disc, owl"),
        (["LABEL_0", "LABEL_1", "LABEL_2"], "The model has 3 classes without names, the data have 2"),
    ):
        config["id2label"] = dict(enumerate(names))
        config["label2id"] = {name: index for index, name in enumerate(names)}
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        assert script.main([*arguments, "--do_eval"]) == 1
        assert message in capsys.readouterr().err


def test_resuming_gives_the_same_bits(trained, scenes, tmp_path):
    """An interrupted run continues from its last complete checkpoint, with the same augmentation."""
    output = tmp_path / trained.name
    shutil.copytree(trained, output)
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    shutil.rmtree(output / "checkpoint-4")
    (output / "model.safetensors").unlink()
    arguments = settings(scenes, output, ema_decay=0.5, overlays=0)
    assert script.main([*arguments, "--do_train"]) == 0
    weights, again = load_file(trained / "model.safetensors"), load_file(output / "model.safetensors")
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_checkpoint_learns_other_classes(trained, scenes, tmp_path):
    coco(tmp_path / "train", 4, ids=(1, 2), names=["red", "green"])
    arguments = settings(
        scenes, tmp_path / "out", model_name_or_path=trained, config_overrides=None, head_overrides=None,
        train_dir=tmp_path / "train", validation_dir=None, train_val_split=0, num_train_epochs=1, layer_decay=0.9,
    )  # fmt: skip
    assert script.main(arguments) == 0
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "red", 1: "green"}
    assert not (tmp_path / "out" / "eval_evaluation.json").exists()


RT_DETR = {
    "encoder_hidden_dim": 16, "encoder_ffn_dim": 16, "encoder_attention_heads": 2, "d_model": 16, "num_queries": 6,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "num_denoising": 4,
}  # fmt: skip
DEFORMABLE = {name: value for name, value in HEAD.items() if name != "num_denoising"}


@pytest.mark.parametrize(("head", "overrides"), [("deformable_detr", DEFORMABLE), ("rt_detr", RT_DETR)])
def test_heads_of_transformers(head, overrides, scenes, tmp_path):
    """One that pads to a batch, and one of square images."""
    arguments = settings(
        scenes, tmp_path / "out", head=head, head_overrides=json.dumps(overrides), shortest_edge=64, num_train_epochs=1,
        overlays=1,
    )  # fmt: skip
    assert script.main(arguments) == 0
    assert "map" in metrics(tmp_path / "out")
    assert AutoModelForObjectDetection.from_pretrained(tmp_path / "out").config.id2label == {0: "square", 1: "disc"}


@pytest.mark.slow
def test_pushing_and_loading_without_the_package(scenes, tmp_path, loopback_hub):  # noqa: F811
    environment = loopback_hub.environment(tmp_path / "home")
    arguments = settings(scenes, tmp_path / "out", num_train_epochs=1, overlays=0)
    arguments += ["--push_to_hub=true", "--hub_model_id=hf-internimage-tests/shapes"]
    picture = str(scenes / "train" / "images" / "03.png")
    use = f"""
        from transformers import pipeline

        detect = pipeline("object-detection", model=MODEL, trust_remote_code=True)
        print([(entry["label"], round(entry["score"], 4)) for entry in detect({picture!r}, threshold=0.0)][:5])
        """
    here = run_python(
        f"""
        from hf_internimage_cli.main import main

        assert main(["train", "detection", *{arguments!r}]) == 0
        """
        + use.replace("MODEL", repr(str(tmp_path / "out"))),
        **environment,
    )
    files = loopback_hub.files("hf-internimage-tests/shapes")
    assert {"README.md", "config.json", "model.safetensors", "modeling_internimage_dino.py"} <= set(files)
    assert not any(name.startswith(("checkpoint-", "runs", "overlays")) or name.endswith(".png") for name in files)
    remote = textwrap.dedent(use.replace("MODEL", '"hf-internimage-tests/shapes"'))
    printed = run_python(WITHOUT_THE_PACKAGE + remote, **environment)
    assert printed.strip().splitlines()[-1] == here.strip().splitlines()[-1]
    assert "square" in printed or "disc" in printed


# ---- Overlays ----


def test_the_best_boxes_lie_above_others(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.add_patch", lambda self, patch: drawn.append(patch.get_width()))
    boxes = np.array([[0.9, 0, 0, 0, 30, 10], [0.1, 0, 0, 0, 10, 10], [0.5, 0, 0, 0, 20, 10]])
    draw_boxes(Image.new("RGB", (60, 40)), np.zeros((0, 6)), boxes, NAMES, tmp_path / "a.png")
    assert drawn == [10, 20, 30]


def test_overlays_show_boxes_where_they_are(tmp_path):
    gray, blue = (200, 200, 200), (31, 119, 180)  # the picture, and the first class
    box = np.array([10, 5, 30, 25])
    for side in (0, 1):
        boxes = [np.zeros((0, 6))] * 2
        boxes[side] = np.array([[1.0, 0, *box]])
        draw_boxes(Image.new("RGB", (60, 40), gray), *boxes, NAMES, tmp_path / "a.png")
        drawn = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
        half = drawn.shape[1] // 2
        panels = drawn[:, :half], drawn[:, half:]

        def lines(panel, colour, axis):
            """Return the columns (axis 0) or rows that have a colour in more than a quarter of their pixels."""
            return np.flatnonzero((abs(panel - colour).sum(-1) < 12).mean(axis) > 0.25)

        assert not len(lines(panels[1 - side], blue, 0))
        columns, rows = (lines(panels[side], gray, axis) for axis in (0, 1))
        scale = np.array([columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1] * 2) / [60, 40, 60, 40]
        assert scale[0] == pytest.approx(scale[1], rel=0.02)
        columns, rows = lines(panels[side], blue, 0) - columns[0], lines(panels[side], blue, 1) - rows[0]
        drawn_box = np.array([columns[0], rows[-1] - 20 * scale[1], columns[-1], rows[-1]])  # above is the label
        np.testing.assert_allclose(drawn_box / scale, box, atol=0.4)


def test_overlays_are_of_images_spread_over_a_split(scenes, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(box_overlays, "draw_boxes", lambda *arguments: drawn.append(arguments))
    data = load(train_dir=scenes / "train", train_val_split=0)
    split = data.train.select([7, 1, 2, 3, 4])
    rows = np.array([[0.9, 1, 3, 4, 5, 6], [0.5, 0, 1, 2, 3, 4], [0.49, 1, 1, 2, 3, 4], [-1, -1, -1, -1, -1, -1]])
    detections = {number: rows + np.array([0, 0, number, 0, 0, 0]) for number in range(8)}
    paths = box_overlays.draw_overlays(
        split, detections, NAMES, tmp_path / "o", prefix="x_", count=3, threshold=0.5, reader=data.reader
    )
    assert [path.name for path in paths] == ["x_000007_07.png", "x_000002_02.png", "x_000004_04.png"]
    for number, (image, truth, kept, names, path) in zip((7, 2, 4), drawn, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(scene(number)[0]))
        boxes = np.array(scene(number)[1])
        assert truth[:, 1].tolist() == [0, 1]
        assert np.array_equal(truth[:, 2:], np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
        assert kept.tolist() == [[0.9, 1, 3 + number, 4, 5, 6], [0.5, 0, 1 + number, 2, 3, 4]]  # 0.5 is enough
        assert (names, path.parent) == (NAMES, tmp_path / "o")
    options = {"count": 0, "threshold": 0.5, "reader": data.reader}
    assert box_overlays.draw_overlays(split, detections, NAMES, tmp_path / "none", **options) == []
