# SPDX-License-Identifier: MIT
r"""Train, fine-tune or evaluate an object detector with an InternImage by the original's recipes.

    hf-internimage train detection --recipe dino_t --output_dir out \
        --train_dir coco/train2017 --train_annotations coco/annotations/instances_train2017.json \
        --validation_dir coco/val2017 --validation_annotations coco/annotations/instances_val2017.json
    hf-internimage evaluate out --output_dir scores \
        --validation_dir coco/val2017 --validation_annotations coco/annotations/instances_val2017.json

Settings come from recipes, then files (YAML or JSON), then options; later ones override earlier ones. The same
command again continues an interrupted training from its last complete checkpoint. A model is DINO or a head of
transformers on an InternImage (--head, and --backbone with pretrained weights or --size), or any detector of
transformers (--model_name_or_path). Scores are COCO's, at the images' own size. At the end the output folder holds the
model, its image processor, its card, the scores as JSON, and overlays of boxes. Needs the extra `train`.
"""

from dataclasses import dataclass, field
from typing import Any

import transformers
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    PreTrainedModel,
    TrainingArguments,
)

from ... import heads
from ...models import auto
from ...models.configuration_internimage import InternImageConfig
from ...models.configuration_internimage_dino import InternImageDinoConfig
from ...models.image_processing_internimage_detection import InternImageDetectionImageProcessor
from ..command_line import UsageError, parse, run_script
from ..overrides import check_overrides
from ..run import RunArguments as SharedRunArguments
from ..run import Task, run_training, trainer_with_data
from ..system_models import SystemModelArguments, load_model
from ..system_trainer import SystemRecipe, checkpoint_backbone
from .augmentation import DetectionAugmentation, DetectionAugmentationArguments
from .coco_map import CocoMap
from .data import DetectionData, DetectionDataArguments, collate, load_data
from .evaluation import curves, evaluate_and_report, publish
from .trainer import DetectionTrainer

# DINO, and those of transformers' detectors that learn from boxes alone, with the image processor of each.
HEADS = {
    "dino": "",
    "detr": "DetrImageProcessorPil",
    "conditional_detr": "ConditionalDetrImageProcessorPil",
    "dab_detr": "ConditionalDetrImageProcessorPil",
    "deformable_detr": "DeformableDetrImageProcessorPil",
    **dict.fromkeys(("rt_detr", "rt_detr_v2", "d_fine", "deimv2"), "RTDetrImageProcessorPil"),
}
_DINO_STAGES = 3  # the last ones, as in the released T, L, H and G


@dataclass
class ModelArguments(SystemModelArguments):
    """Name the model to train: a detector's checkpoint, or a new head on a backbone; and the sizes of its images."""

    heads = tuple(HEADS)

    head: str = field(
        default="dino", metadata={"help": f"Without model_name_or_path: the new head, one of {', '.join(HEADS)}."}
    )
    shortest_edge: int | None = field(
        default=None,
        metadata={
            "help": "Images are resized to fit this and longest_edge; of heads with square images (RT-DETR and its "
            "descendants) the side. Default: the image processor's."
        },
    )
    longest_edge: int | None = field(default=None, metadata={"help": "Default: shortest_edge times 1333 / 800."})
    max_detections: int | None = field(
        default=None, metadata={"help": "Detections kept of each image; default: the image processor's."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.longest_edge is not None and self.longest_edge < (self.shortest_edge or self.longest_edge + 1):
            raise ValueError(f"longest_edge is {self.longest_edge}: set shortest_edge, too, and to no more than that.")
        if self.max_detections is not None and self.max_detections < 1:
            raise ValueError(f"max_detections is {self.max_detections}, expected at least 1.")


@dataclass
class RunArguments(SharedRunArguments):
    """Settings of the run itself."""

    overlays: int = field(default=16, metadata={"help": "Images of an evaluation to draw with their boxes."})
    overlay_threshold: float = field(default=0.4, metadata={"help": "Least score of a box that is drawn."})


# Defaults that differ from the other tasks' and transformers' own.
DEFAULTS: dict[str, Any] = {
    "output_dir": "object_detection_output",
    "lr_scheduler_type": "constant_with_warmup",
    "metric_for_best_model": "map",
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
}


@dataclass
class ScriptArguments:
    """All arguments, by their subject."""

    model: ModelArguments
    data: DetectionDataArguments
    augmentation: DetectionAugmentationArguments
    recipe: SystemRecipe
    run: RunArguments
    training: TrainingArguments


def read_arguments(argv: list[str]) -> ScriptArguments:
    """Read the arguments from files of settings and the command line."""
    return parse(ScriptArguments, argv, "hf-internimage train detection", __doc__, DEFAULTS)


def build_model(arguments: ModelArguments, data: DetectionData) -> PreTrainedModel:
    """Load the checkpoint with a classifier for the data's labels, or make a new head on a backbone."""
    backbone_fields, head_fields = arguments.overrides(data.label_names)
    revision = arguments.model_revision
    if arguments.model_name_or_path is not None:
        return load_model(arguments, backbone_fields, head_fields, lambda config: AutoModelForObjectDetection)
    if arguments.backbone is not None and arguments.head != "dino":
        return heads.from_backbone(
            arguments.head, arguments.backbone, backbone_fields=backbone_fields, revision=revision, **head_fields
        )
    if arguments.backbone is not None:
        source: Any = auto.load_config(arguments.backbone, revision=revision)
        model = AutoModelForObjectDetection.from_config(dino_config(source, backbone_fields, head_fields))
        return heads.load_backbone(model, arguments.backbone, revision=revision)
    backbone = InternImageConfig.from_size(arguments.size) if arguments.size else InternImageConfig()
    if arguments.head == "dino":
        return AutoModelForObjectDetection.from_config(dino_config(backbone, backbone_fields, head_fields))
    check_overrides("config_overrides", backbone, backbone_fields)
    backbone = type(backbone).from_dict({**backbone.to_dict(), **backbone_fields})
    config = heads.head_config(arguments.head, backbone, **head_fields)
    return getattr(transformers, heads.HEADS[arguments.head].model)(config)


def dino_config(backbone: Any, backbone_fields: dict[str, Any], head_fields: dict[str, Any]) -> InternImageDinoConfig:
    """Return DINO's configuration on an InternImage's, with the last three stages unless `backbone_fields` has others.

    Raises:
        UsageError: for the configuration of another backbone.
    """
    if not isinstance(backbone, InternImageConfig):
        raise UsageError(f"The backbone is of type {backbone.model_type!r}, expected an InternImage.")
    check_overrides("config_overrides", backbone, backbone_fields)
    fields = {**backbone.to_dict(), **backbone_fields}
    for name in ("architectures", "dtype", "id2label", "label2id", "out_features", "out_indices", "stage_names"):
        if name not in backbone_fields:
            fields.pop(name, None)
    fields.setdefault("out_features", [f"stage{stage + 1}" for stage in range(len(fields["depths"]))][-_DINO_STAGES:])
    return InternImageDinoConfig(backbone_config=type(backbone).from_dict(fields), **head_fields)


def build_processor(arguments: ScriptArguments, model: PreTrainedModel) -> Any:
    """Load the checkpoint's image processor, or make a new one, for images of the size in the arguments.

    Raises:
        UsageError: if `max_detections` is set and the image processor keeps all that the model detects.
    """
    options = arguments.model
    short, long = options.shortest_edge, options.longest_edge
    if options.model_name_or_path is not None:
        processor: Any = AutoImageProcessor.from_pretrained(options.model_name_or_path, revision=options.model_revision)
    elif options.head == "dino":
        processor = InternImageDetectionImageProcessor()
    else:
        # As the backbones are trained, also where the head's own processor does not normalise.
        processor = getattr(transformers, HEADS[options.head])(do_normalize=True)
    if short is not None:
        size = {"shortest_edge": short, "longest_edge": long or round(short * 1333 / 800)}
        if dict(processor.size).get("height"):
            size = {"height": short, "width": short}
        processor = type(processor)(**{**processor.to_dict(), "size": size})
    if options.max_detections is not None:
        if not hasattr(processor, "top_k"):
            name = type(processor).__name__
            raise UsageError(f"{name} has no number of detections to keep: leave out max_detections.")
        processor.top_k = options.max_detections
    return processor


def build_trainer(
    arguments: ScriptArguments, data: DetectionData, model: PreTrainedModel, processor: Any
) -> DetectionTrainer:
    """Build the trainer with its data, augmented in training and prepared by the image processor in evaluation.

    Raises:
        ValueError: for images with fewer positions than the head has queries.
    """
    if dict(processor.size).get("height"):
        heads.check_queries(model.config, processor.size["height"], processor.size["width"])
    checkpoint_backbone(model, arguments.training)
    return trainer_with_data(
        DetectionTrainer,
        arguments,
        data,
        model,
        processor,
        lambda: DetectionAugmentation(processor, arguments.augmentation),
        data_collator=collate,
        compute_metrics=None if data.validation is None else CocoMap(data.validation, data.label_names),
    )


def evaluate_options(arguments: ScriptArguments) -> dict[str, Any]:
    """Return the options of `evaluate_and_report` that the arguments set."""
    return {"overlays": arguments.run.overlays, "overlay_threshold": arguments.run.overlay_threshold}


TASK = Task(
    load_data=load_data,
    build_model=build_model,
    build_processor=build_processor,
    build_trainer=build_trainer,
    evaluate_and_report=evaluate_and_report,
    publish=publish,
    evaluate_options=evaluate_options,
    curves=curves,
)


def run(arguments: ScriptArguments) -> None:
    """Train, evaluate and publish a detector, as far as the arguments ask for it."""
    run_training(arguments, TASK)


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Return 0, or 1 after the error has been written to stderr."""
    return run_script(read_arguments, run, argv)
