# SPDX-License-Identifier: MIT
r"""Train, fine-tune or evaluate semantic segmentation with an InternImage by the original's recipes.

    hf-internimage train segmentation --recipe upernet_t --train_dir ade20k/training \
        --validation_dir ade20k/validation --label_names_file names.txt --output_dir out
    hf-internimage evaluate out --validation_dir ade20k/validation --tta_ratios 0.75 1.0 1.25 --tta_flip

Settings come from recipes, then files (YAML or JSON), then options; later ones override earlier ones. The same
command again continues an interrupted training from its last complete checkpoint. A model is a head of transformers on
an InternImage (--head, and --backbone with pretrained weights or --size), or any segmenter of transformers
(--model_name_or_path). Scores during the training (eval_mean_iou in training.png) are at the size that the image
processor makes; those at the end, in eval_results.json, at the images' own size, as --inference says. At the end the
output folder also holds the model, its image processor, its card and overlays of masks. Needs the extra `train`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PreTrainedModel,
    TrainingArguments,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING

from ... import heads
from ...hub.loading import loading
from ...models.configuration_internimage import InternImageConfig
from ...models.image_processing_internimage_segmentation import InternImageSegmentationImageProcessor
from ..command_line import UsageError, parse, run_script
from ..run import RunArguments, Task, run_training, trainer_with_data
from ..system_models import SystemModelArguments, load_model
from ..system_trainer import SystemRecipe, checkpoint_backbone
from .augmentation import SegmentationAugmentation, SegmentationAugmentationArguments, kornia_enhance
from .data import SegmentationData, SegmentationDataArguments, collate, load_data
from .evaluation import InferenceArguments, evaluate_and_report, publish
from .trainer import ComputeMeanIoU, SegmentationTrainer

HEADS = ("upernet", "mask2former")


@dataclass
class ModelArguments(SystemModelArguments):
    """Name the model to train: a segmenter's checkpoint, or a new head on a backbone; and the sizes of its images."""

    heads = HEADS

    head: str = field(
        default="upernet", metadata={"help": f"Without model_name_or_path: the new head, one of {', '.join(HEADS)}."}
    )
    shortest_edge: int | None = field(
        default=None,
        metadata={"help": "Images are resized to fit this and longest_edge; default: the checkpoint's, or the crop's."},
    )
    longest_edge: int | None = field(default=None, metadata={"help": "Default: four times shortest_edge."})
    size_divisor: int | None = field(
        default=None, metadata={"help": "Both sides become a multiple of this; default: the checkpoint's, or 32."}
    )


# Defaults that differ from the other tasks' and transformers' own.
DEFAULTS: dict[str, Any] = {
    "output_dir": "semantic_segmentation_output",
    "lr_scheduler_type": "polynomial",
    "metric_for_best_model": "mean_iou",
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 1,  # images come out in several sizes
    "batch_eval_metrics": True,
    "dataloader_drop_last": True,  # for batch norms
}


@dataclass
class ScriptArguments:
    """All arguments, by their subject."""

    model: ModelArguments
    data: SegmentationDataArguments
    augmentation: SegmentationAugmentationArguments
    inference: InferenceArguments
    recipe: SystemRecipe
    run: RunArguments
    training: TrainingArguments


def read_arguments(argv: list[str]) -> ScriptArguments:
    """Read the arguments from files of settings and the command line."""
    return parse(ScriptArguments, argv, "hf-internimage train segmentation", __doc__, DEFAULTS)


def build_model(arguments: ModelArguments, data: SegmentationData) -> PreTrainedModel:
    """Load the checkpoint with a classifier for the data's labels, or make a new head on a backbone."""
    backbone_fields, head_fields = arguments.overrides(data.label_names)
    if arguments.model_name_or_path is not None:
        return load_model(arguments, backbone_fields, head_fields, auto_class_of)
    if arguments.backbone is not None:
        return heads.from_backbone(
            arguments.head,
            arguments.backbone,
            backbone_fields=backbone_fields,
            revision=arguments.model_revision,
            **head_fields,
        )
    if arguments.size is not None:
        backbone = InternImageConfig.from_size(arguments.size, **backbone_fields)
    else:
        backbone = InternImageConfig(**backbone_fields)
    config = heads.head_config(arguments.head, backbone, **head_fields)
    return getattr(transformers, heads.HEADS[arguments.head].model)(config)


def auto_class_of(config: Any) -> Any:
    """Return the Auto class that loads a segmenter of this configuration."""
    is_semantic = type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    return AutoModelForSemanticSegmentation if is_semantic else AutoModelForUniversalSegmentation


def load_processor(arguments: ModelArguments) -> Any:
    """Load the checkpoint's image processor; return None without a checkpoint."""
    if arguments.model_name_or_path is None:
        return None
    with loading(arguments.model_name_or_path):
        return AutoImageProcessor.from_pretrained(arguments.model_name_or_path, revision=arguments.model_revision)


def build_processor(arguments: ScriptArguments, model: PreTrainedModel) -> InternImageSegmentationImageProcessor:
    """Make an image processor for the sizes in the arguments, with the colours and sizes of the checkpoint's.

    Raises:
        ValueError: for settings of the inference that are impossible with it.
    """
    sizes, loaded = arguments.model, load_processor(arguments.model)
    is_ours = isinstance(loaded, InternImageSegmentationImageProcessor)
    fields: dict[str, Any] = {}
    if loaded is not None:
        fields |= {"image_mean": loaded.image_mean, "image_std": loaded.image_std}
    if is_ours:
        fields |= {"size": dict(loaded.size), "size_divisor": loaded.size_divisor}
    if sizes.shortest_edge is not None or not is_ours:
        short = sizes.shortest_edge or min(arguments.augmentation.crop)
        fields["size"] = {"shortest_edge": short, "longest_edge": sizes.longest_edge or 4 * short}
    elif sizes.longest_edge is not None:
        fields["size"] = {**dict(loaded.size), "longest_edge": sizes.longest_edge}
    if sizes.size_divisor is not None:
        fields["size_divisor"] = sizes.size_divisor
    processor = InternImageSegmentationImageProcessor(do_reduce_labels=bool(arguments.data.reduce_labels), **fields)
    arguments.inference.segmenter(model, processor)  # refuses impossible settings before the training
    return processor


def build_trainer(
    arguments: ScriptArguments, data: SegmentationData, model: PreTrainedModel, processor: Any
) -> SegmentationTrainer:
    """Build the trainer with its data, augmented in training and prepared by the image processor in evaluation."""

    def make_augmentation() -> SegmentationAugmentation:
        short, long = processor.size["shortest_edge"], processor.size["longest_edge"]
        mean, std = list(processor.image_mean), list(processor.image_std)
        return SegmentationAugmentation(short, long, mean, std, arguments.augmentation)

    training = arguments.training
    checkpoint_backbone(model, training)
    if training.world_size > 1 and training.device.type == "cuda":
        # The original's heads normalise over the images of all devices, which have one or two each.
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return trainer_with_data(
        SegmentationTrainer,
        arguments,
        data,
        model,
        processor,
        make_augmentation,
        data_collator=collate,
        compute_metrics=ComputeMeanIoU(len(data.label_names)),
    )


TASK = Task(
    load_data=load_data,
    build_model=build_model,
    build_processor=build_processor,
    build_trainer=build_trainer,
    evaluate_and_report=evaluate_and_report,
    publish=publish,
    evaluate_options=lambda arguments: {"inference": arguments.inference},
)


def run(arguments: ScriptArguments) -> None:
    """Train, evaluate and publish a segmenter, as far as the arguments ask for it.

    Raises:
        UsageError: for do_predict, and as `run_training`.
    """
    if arguments.training.do_train and arguments.augmentation.color_distortion:
        kornia_enhance()  # now: it defines classes, which fails once DeepSpeed's ZeRO-3 has made a model
    if arguments.training.do_predict:
        raise UsageError("do_predict is no part of this task: use do_eval with validation_dir.")
    if arguments.data.reduce_labels is None:
        arguments.data.reduce_labels = getattr(load_processor(arguments.model), "do_reduce_labels", False)
    run_training(arguments, TASK)


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Return 0, or 1 after the error has been written to stderr."""
    return run_script(read_arguments, run, argv)
