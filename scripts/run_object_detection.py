# SPDX-License-Identifier: MIT
"""Train, fine-tune or evaluate an object detector with an InternImage by the original's recipes.

    python scripts/run_object_detection.py scripts/recipes/detection/dino_t.yaml --output_dir out \
        --train_dir coco/train2017 --train_annotations coco/annotations/instances_train2017.json \
        --validation_dir coco/val2017 --validation_annotations coco/annotations/instances_val2017.json
    python scripts/run_object_detection.py --do_eval --model_name_or_path out --output_dir scores \
        --validation_dir coco/val2017 --validation_annotations coco/annotations/instances_val2017.json

Files of settings (YAML or JSON) come first, later ones and then the command line win. All settings: --help. The same
command again continues an interrupted training from its last complete checkpoint. A model is DINO or a head of
transformers on an InternImage (--head, and --backbone with pretrained weights or --size), or any detector of
transformers (--model_name_or_path). Scores are COCO's, at the images' own size. At the end the output folder holds the
model, its image processor, its card, the scores as JSON, and overlays of boxes. Needs the extra `train`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Python puts a script's folder first on the path, where scripts/evaluate.py would be found instead of the package.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)

from hf_internimage import InternImageConfig, InternImageDetectionImageProcessor, heads
from hf_internimage.models.configuration_internimage_dino import InternImageDinoConfig
from hf_internimage.training import plots as reports
from hf_internimage.training.command_line import (
    UsageError,
    are_unnamed,
    checkpoint_labels,
    find_checkpoint,
    keep_last_model,
    parse,
    run_script,
    wanted_splits,
)
from hf_internimage.training.detection.augmentation import DetectionAugmentation, DetectionAugmentationArguments
from hf_internimage.training.detection.coco_map import CocoMap
from hf_internimage.training.detection.data import DetectionData, DetectionDataArguments, load_detection_data
from hf_internimage.training.detection.evaluation import curves, judge, publish
from hf_internimage.training.detection.trainer import Collate, DetectionTrainer
from hf_internimage.training.images import Augmented
from hf_internimage.training.system_models import DenseModelArguments, load_model
from hf_internimage.training.system_trainer import DenseRecipe, checkpoint_backbone
from hf_internimage.training.trainer import EpochCallback

# DINO, and of transformers' detectors those that learn from boxes alone; with the image processor of each.
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
class ModelArguments(DenseModelArguments):
    """Which model is trained: a detector's checkpoint, or a new head on a backbone; and for what sizes of images."""

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
class RunArguments:
    """What else happens in a run."""

    overlays: int = field(default=16, metadata={"help": "Images of an evaluation to draw with their boxes."})
    overlay_threshold: float = field(default=0.4, metadata={"help": "Least score of a box that is drawn."})
    license: str | None = field(default=None, metadata={"help": "Licence of the weights, for the model's card."})


# Where these differ from the other scripts' and transformers' own.
DEFAULTS: dict[str, Any] = {
    "output_dir": "object_detection_output",
    "lr_scheduler_type": "constant_with_warmup",
    "metric_for_best_model": "map",
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
}


@dataclass
class Parts:
    """All arguments, by what they are about."""

    model: ModelArguments
    data: DetectionDataArguments
    augmentation: DetectionAugmentationArguments
    recipe: DenseRecipe
    run: RunArguments
    training: TrainingArguments


def read_arguments(argv: list[str]) -> Parts:
    """The arguments' dataclasses, from files of settings and the command line."""
    return parse(Parts, argv, __doc__, DEFAULTS)


def build_model(arguments: ModelArguments, label_names: list[str]) -> PreTrainedModel:
    """The checkpoint with a classifier for these labels, or a new head on a backbone."""
    of_backbone, of_head = arguments.overrides(label_names)
    revision = arguments.model_revision
    if arguments.model_name_or_path is not None:
        return load_model(
            arguments.model_name_or_path, revision, of_backbone, of_head, lambda config: AutoModelForObjectDetection
        )
    if arguments.backbone is not None and arguments.head != "dino":
        return heads.from_backbone(
            arguments.head, arguments.backbone, backbone_fields=of_backbone, revision=revision, **of_head
        )
    if arguments.backbone is not None:
        source: Any = AutoConfig.from_pretrained(arguments.backbone, revision=revision)
        model = AutoModelForObjectDetection.from_config(dino_config(source, of_backbone, of_head))
        return heads.load_backbone(model, arguments.backbone, revision=revision)
    backbone = InternImageConfig.from_size(arguments.size) if arguments.size else InternImageConfig()
    if arguments.head == "dino":
        return AutoModelForObjectDetection.from_config(dino_config(backbone, of_backbone, of_head))
    backbone = type(backbone).from_dict({**backbone.to_dict(), **of_backbone})
    config = heads.head_config(arguments.head, backbone, **of_head)
    return getattr(transformers, heads.HEADS[arguments.head].model)(config)


def dino_config(backbone: Any, of_backbone: dict[str, Any], of_head: dict[str, Any]) -> InternImageDinoConfig:
    """DINO's configuration on a backbone of any InternImage's, which gives its last three stages if not told else."""
    if not isinstance(backbone, InternImageConfig):
        raise UsageError(f"The backbone is of type {backbone.model_type!r}, expected an InternImage.")
    fields = {**backbone.to_dict(), **of_backbone}
    for name in ("architectures", "dtype", "id2label", "label2id", "out_features", "out_indices", "stage_names"):
        if name not in of_backbone:
            fields.pop(name, None)
    fields.setdefault("out_features", [f"stage{stage + 1}" for stage in range(len(fields["depths"]))][-_DINO_STAGES:])
    return InternImageDinoConfig(backbone_config=type(backbone).from_dict(fields), **of_head)


def build_processor(arguments: ModelArguments) -> Any:
    """The checkpoint's image processor, or a new one; for images of the wanted size.

    Raises:
        UsageError: if `max_detections` is set and the image processor keeps what the model finds.
    """
    short, long = arguments.shortest_edge, arguments.longest_edge
    if arguments.model_name_or_path is not None:
        found: Any = AutoImageProcessor.from_pretrained(arguments.model_name_or_path, revision=arguments.model_revision)
    elif arguments.head == "dino":
        found = InternImageDetectionImageProcessor()
    else:
        # As the backbones are trained, also where the head's own processor does not normalise.
        found = getattr(transformers, HEADS[arguments.head])(do_normalize=True)
    if short is not None:
        size = {"shortest_edge": short, "longest_edge": long or round(short * 1333 / 800)}
        if dict(found.size).get("height"):
            size = {"height": short, "width": short}
        found = type(found)(**{**found.to_dict(), "size": size})
    if arguments.max_detections is not None:
        if not hasattr(found, "top_k"):
            raise UsageError(f"{type(found).__name__} has no number of detections to keep: leave out max_detections.")
        found.top_k = arguments.max_detections
    return found


def build_trainer(parts: Parts, loaded: DetectionData, model: PreTrainedModel, processor: Any) -> DetectionTrainer:
    """The trainer with its data, augmented in training and prepared by the image processor in evaluation."""
    training = parts.training
    callbacks, train = [], None
    if loaded.train is not None:
        objects = Augmented(DetectionAugmentation(processor, parts.augmentation), training.seed)
        callbacks.append(EpochCallback(objects.epoch))
        train = loaded.train.with_transform(loaded.training_transform(objects))
    checkpoint_backbone(model, training)
    validation = loaded.validation
    evaluation = loaded.evaluation_transform(processor)
    return DetectionTrainer(
        model=model,
        args=training,
        recipe=parts.recipe,
        train_dataset=train,
        eval_dataset=None if validation is None else validation.with_transform(evaluation),
        data_collator=Collate(),
        processing_class=processor,
        callbacks=callbacks,
        compute_metrics=None if validation is None else CocoMap(validation, loaded.label_names),
    )


def run(parts: Parts) -> None:
    training = parts.training
    set_seed(training.seed)
    checkpoint = find_checkpoint(training) if training.do_train else None
    names = None
    if not training.do_train:
        names = checkpoint_labels(parts.model.model_name_or_path, parts.model.model_revision)
    with training.main_process_first(desc="reading the data"):
        given = None if names is None or are_unnamed(names) else names
        loaded = load_detection_data(parts.data, training.seed, wanted_splits(training), given)
    if names is not None and len(names) != len(loaded.label_names):
        raise UsageError(
            f"The model has {len(names)} classes without names, the data have {len(loaded.label_names)}: which are "
            "the same cannot be told."
        )
    if training.do_eval and not training.do_train and loaded.validation is None:
        raise UsageError("There are no validation data: set validation_dir, or validation_split_name.")
    if training.do_predict and loaded.test is None:
        raise UsageError("There are no test data: set test_dir or test_split_name.")
    if training.do_train and loaded.validation is None:
        keep_last_model(training)
    model = build_model(parts.model, loaded.label_names)
    processor = build_processor(parts.model)
    trainer = build_trainer(parts, loaded, model, processor)
    output = Path(str(training.output_dir))

    if training.do_train:
        trainer.train_and_save(checkpoint)
    evaluation = None
    judged = None if training.do_train else parts.model.model_name_or_path
    how: Any = {
        "name": judged or training.hub_model_id or str(output),
        "overlays": parts.run.overlays,
        "overlay_threshold": parts.run.overlay_threshold,
    }
    if training.do_eval and loaded.validation is not None:
        evaluation = judge(trainer, loaded.validation, "eval", parts.data, loaded, **how)
    if training.do_predict and loaded.test is not None:
        judge(trainer, loaded.test, "test", parts.data, loaded, **how)
    if not training.do_train:
        return
    if trainer.is_world_process_zero():
        reports.draw_training(curves(trainer.state.log_history), output / "training.png")
    began = parts.model.model_name_or_path or parts.model.backbone
    publish(trainer, evaluation, base_model=began, license=parts.run.license)


def main(argv: list[str] | None = None) -> int:
    return run_script(read_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
