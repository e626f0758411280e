# SPDX-License-Identifier: MIT
"""Train, fine-tune or evaluate semantic segmentation with an InternImage by the original's recipes.

    python scripts/run_semantic_segmentation.py scripts/recipes/segmentation/upernet_t.yaml \
        --train_dir ade20k/training --validation_dir ade20k/validation --label_names_file names.txt --output_dir out
    python scripts/run_semantic_segmentation.py --do_eval --model_name_or_path out --validation_dir ade20k/validation \
        --tta_ratios 0.75 1.0 1.25 --tta_flip --output_dir scores

Files of settings (YAML or JSON) come first, later ones and then the command line win. All settings: --help. The same
command again continues an interrupted training from its last complete checkpoint. A model is a head of transformers on
an InternImage (--head, and --backbone with pretrained weights or --size), or any segmenter of transformers
(--model_name_or_path). Scores during the training (eval_mean_iou in training.png) are at the size that the image
processor makes; those at the end, in eval_results.json, at the images' own size, as --inference says. At the end the
output folder also holds the model, its image processor, its card and overlays of masks. Needs the extra `train`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Python puts a script's folder first on the path, where scripts/evaluate.py would be found instead of the package.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

import torch
import transformers
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING

from hf_internimage import InternImageConfig, InternImageSegmentationImageProcessor, heads
from hf_internimage.training import plots as reports
from hf_internimage.training.command_line import (
    UsageError,
    are_unnamed,
    checkpoint_labels,
    find_checkpoint,
    keep_last_model,
    parse,
    run_script,
)
from hf_internimage.training.images import Augmented
from hf_internimage.training.segmentation import data as segmentation_data
from hf_internimage.training.segmentation.augmentation import (
    SegmentationAugmentation,
    SegmentationAugmentationArguments,
)
from hf_internimage.training.segmentation.data import ProcessorPair, SegmentationData, SegmentationDataArguments
from hf_internimage.training.segmentation.evaluation import InferenceArguments, judge, publish
from hf_internimage.training.segmentation.trainer import ComputeMeanIoU, SegmentationTrainer
from hf_internimage.training.system_models import DenseModelArguments, load_model
from hf_internimage.training.system_trainer import DenseRecipe, checkpoint_backbone
from hf_internimage.training.trainer import EpochCallback

HEADS = ("upernet", "mask2former")


@dataclass
class ModelArguments(DenseModelArguments):
    """Which model is trained: a segmenter's checkpoint, or a new head on a backbone; and for what sizes of images."""

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


@dataclass
class RunArguments:
    """What else happens in a run."""

    license: str | None = field(default=None, metadata={"help": "Licence of the weights, for the model's card."})


# Where these differ from the other scripts' and transformers' own.
DEFAULTS: dict[str, Any] = {
    "output_dir": "semantic_segmentation_output",
    "lr_scheduler_type": "polynomial",
    "metric_for_best_model": "mean_iou",
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 1,  # images come out in several sizes
    "batch_eval_metrics": True,
    "dataloader_drop_last": True,  # of the training data only, for batch norms
}


@dataclass
class Parts:
    """All arguments, by what they are about."""

    model: ModelArguments
    data: SegmentationDataArguments
    augmentation: SegmentationAugmentationArguments
    inference: InferenceArguments
    recipe: DenseRecipe
    run: RunArguments
    training: TrainingArguments


def read_arguments(argv: list[str]) -> Parts:
    """The arguments' dataclasses, from files of settings and the command line."""
    return parse(Parts, argv, __doc__, DEFAULTS)


def build_model(arguments: ModelArguments, label_names: list[str]) -> PreTrainedModel:
    """The checkpoint with a classifier for these labels, or a new head on a backbone."""
    fields, of_head = arguments.overrides(label_names)
    if arguments.model_name_or_path is not None:
        return load_model(arguments.model_name_or_path, arguments.model_revision, fields, of_head, auto_class)
    if arguments.backbone is not None:
        return heads.from_backbone(
            arguments.head, arguments.backbone, backbone_fields=fields, revision=arguments.model_revision, **of_head
        )
    backbone = InternImageConfig.from_size(arguments.size, **fields) if arguments.size else InternImageConfig(**fields)
    config = heads.head_config(arguments.head, backbone, **of_head)
    return getattr(transformers, heads.HEADS[arguments.head].model)(config)


def auto_class(config: Any) -> Any:
    """What loads a segmenter of this configuration."""
    semantic = type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    return AutoModelForSemanticSegmentation if semantic else AutoModelForUniversalSegmentation


def evaluated_labels(arguments: ModelArguments, label_names: list[str] | None) -> list[str]:
    """Before an evaluation without training: the checkpoint's class names, which have to be those of the data.

    Raises:
        UsageError: if they are not, or there is no checkpoint.
    """
    theirs = checkpoint_labels(arguments.model_name_or_path, arguments.model_revision)
    if label_names is None or theirs == label_names:
        return theirs
    if len(theirs) != len(label_names) or not are_unnamed(theirs):
        raise UsageError(
            f"The model's {len(theirs)} classes ({', '.join(theirs[:3])}...) are not the {len(label_names)} of "
            f"label_names_file ({', '.join(label_names[:3])}...) in that order: take a model of these classes."
        )
    return label_names


def load_processor(arguments: ModelArguments) -> Any:
    """The checkpoint's image processor; None without a checkpoint."""
    if arguments.model_name_or_path is None:
        return None
    return AutoImageProcessor.from_pretrained(arguments.model_name_or_path, revision=arguments.model_revision)


def build_processor(parts: Parts, found: Any) -> InternImageSegmentationImageProcessor:
    """The checkpoint's image processor, if one was `found`, or a new one with its colours; for the wanted size."""
    arguments = parts.model
    fields: dict[str, Any] = {"do_reduce_labels": bool(parts.data.reduce_labels)}
    kept = isinstance(found, InternImageSegmentationImageProcessor)
    if arguments.shortest_edge is not None or not kept:
        short = arguments.shortest_edge or min(parts.augmentation.crop)
        fields["size"] = {"shortest_edge": short, "longest_edge": arguments.longest_edge or 4 * short}
    elif arguments.longest_edge is not None:
        fields["size"] = {**found.size, "longest_edge": arguments.longest_edge}
    if arguments.size_divisor is not None:
        fields["size_divisor"] = arguments.size_divisor
    if found is not None:
        fields = {"image_mean": found.image_mean, "image_std": found.image_std, **fields}
    if kept:
        fields = {"size": dict(found.size), "size_divisor": found.size_divisor, **fields}
    return InternImageSegmentationImageProcessor(**fields)


def build_trainer(
    parts: Parts, loaded: SegmentationData, model: PreTrainedModel, processor: Any
) -> SegmentationTrainer:
    """The trainer with its data, augmented in training and prepared by the image processor in evaluation."""
    training = parts.training
    callbacks, train = [], None
    if loaded.train is not None:
        size = processor.size
        augmentation = SegmentationAugmentation(
            size["shortest_edge"],
            size["longest_edge"],
            list(processor.image_mean),
            list(processor.image_std),
            parts.augmentation,
        )
        pair = Augmented(augmentation, training.seed)
        callbacks.append(EpochCallback(pair.epoch))
        train = loaded.train.with_transform(loaded.transform(pair))
    checkpoint_backbone(model, training)
    if training.world_size > 1 and training.device.type == "cuda":
        # The original's heads normalise over the images of all devices, which have one or two each.
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    evaluation = loaded.transform(ProcessorPair(processor))
    return SegmentationTrainer(
        model=model,
        args=training,
        recipe=parts.recipe,
        train_dataset=train,
        eval_dataset=None if loaded.validation is None else loaded.validation.with_transform(evaluation),
        data_collator=segmentation_data.collate,
        processing_class=processor,
        callbacks=callbacks,
        compute_metrics=ComputeMeanIoU(len(loaded.label_names)),
    )


def run(parts: Parts) -> None:
    training = parts.training
    if training.do_predict:
        raise UsageError("do_predict is not a part of this script: use do_eval with validation_dir.")
    set_seed(training.seed)
    checkpoint = find_checkpoint(training) if training.do_train else None
    found = load_processor(parts.model)
    if parts.data.reduce_labels is None:
        parts.data.reduce_labels = getattr(found, "do_reduce_labels", False)
    splits = ("train", "validation") if training.do_train else ("validation",)
    names: list[str] | None = None
    if not training.do_train:
        file = parts.data.label_names_file
        names = evaluated_labels(parts.model, None if file is None else segmentation_data.read_label_names(Path(file)))
    with training.main_process_first(desc="reading the data"):
        loaded = segmentation_data.load_data(parts.data, training.seed, splits, names)
    if loaded.validation is None:
        if not training.do_train:
            raise UsageError("There are no validation data: set validation_dir, or validation_split_name.")
        keep_last_model(training)
    total = training.train_batch_size * training.world_size
    if loaded.train is not None and len(loaded.train) < total:
        raise UsageError(f"There are {len(loaded.train)} training images for batches of {total}: make these smaller.")
    model = build_model(parts.model, loaded.label_names)
    processor = build_processor(parts, found)
    parts.inference.segmenter(model, processor)  # refuses impossible settings before the training
    trainer = build_trainer(parts, loaded, model, processor)
    output = Path(str(training.output_dir))

    if training.do_train:
        trainer.train_and_save(checkpoint)
    evaluation = None
    if training.do_eval and loaded.validation is not None:
        judged = None if training.do_train else parts.model.model_name_or_path
        name = judged or training.hub_model_id or str(output)
        evaluation = judge(trainer, loaded.validation, parts.data, parts.inference, loaded, name)
    if not training.do_train:
        return
    if trainer.is_world_process_zero():
        reports.draw_training(trainer.state.log_history, output / "training.png")
    began = parts.model.model_name_or_path or parts.model.backbone
    publish(trainer, evaluation, base_model=began, license=parts.run.license)


def main(argv: list[str] | None = None) -> int:
    return run_script(read_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
