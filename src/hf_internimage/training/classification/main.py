# SPDX-License-Identifier: MIT
r"""Train or fine-tune an image classifier by InternImage's recipe, on any data set, on one device or many.

    hf-internimage train classification --recipe finetune --train_dir images --output_dir out
    torchrun --nproc-per-node 8 -m hf_internimage train classification --recipe t \
        --dataset_name ILSVRC/imagenet-1k --output_dir out

Settings come from recipes, then files (YAML or JSON), then options; later ones override earlier ones. The same
command again continues an interrupted training from its last complete checkpoint. At the end the output folder holds
the model, its image processor, its card, the metrics as JSON, and pictures of the training, the confusions and the
worst mistakes. Needs the extra `train`.
"""

from dataclasses import dataclass, field
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    EarlyStoppingCallback,
    PreTrainedModel,
    TrainingArguments,
)
from transformers.utils import logging

from ...hub.loading import load_pretrained
from ...hub.repository import default_image_processor
from ...models import auto
from ...models.image_processing_pil_internimage import InternImageImageProcessorPil
from ..command_line import UsageError, json_object, parse, run_script
from ..images import target_size
from ..overrides import check_overrides, refuse_contradictions
from ..run import RunArguments as SharedRunArguments
from ..run import Task, label_fields, run_training, trainer_with_data
from .augmentation import Augmentation, AugmentationArguments
from .data import ClassificationData, ClassificationDataArguments, collate, load_data
from .evaluation import evaluate_and_report, publish
from .metrics import ComputeMetrics, keep_best, keep_scores
from .trainer import ClassificationRecipe, ClassificationTrainer

logger = logging.get_logger(__name__)


@dataclass
class ModelArguments:
    """Name the model to train: a checkpoint, or a new one of a type and size."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from: a folder, or a repository on the Hub."}
    )
    model_type: str = field(
        default="internimage", metadata={"help": "Without a checkpoint: type of the new model, in transformers' words."}
    )
    size: str | None = field(
        default=None, metadata={"help": "Without a checkpoint: size of a new InternImage: t, s, b, l, xl, h or g."}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": 'Fields of the configuration, as JSON: {"channels": 32, "depths": [1, 1, 2]}.'}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the images in pixels; default: that of the checkpoint or size."}
    )
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth; default: the model's."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the checkpoint."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code from the Hub."})

    def __post_init__(self) -> None:
        if self.size is None:
            return
        if self.model_name_or_path is not None:
            raise ValueError("model_name_or_path and size are both set; choose one of them.")
        if self.model_type not in auto.model_types("AutoModelForImageClassification"):
            raise ValueError(f"size={self.size} is InternImage's: use config_overrides for {self.model_type}.")
        auto.load(auto.MODELS[self.model_type].config).from_size(self.size)  # refuses a wrong one before data are read

    @property
    def base_model(self) -> str | None:
        """The folder or repository that the training starts from; None for new weights."""
        return self.model_name_or_path


@dataclass
class RunArguments(SharedRunArguments):
    """Settings of the run itself."""

    class_weighting: bool = field(
        default=False, metadata={"help": "Weigh classes in the training loss by the inverse of their frequency."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better one."}
    )
    check_data: bool = field(default=False, metadata={"help": "Deprecated: the same as --bad_images list."})


# Defaults that differ from the other tasks' and transformers' own.
DEFAULTS: dict[str, Any] = {
    "output_dir": "image_classification_output",
    "lr_scheduler_type": "cosine",
    "metric_for_best_model": "accuracy",
    "per_device_eval_batch_size": 64,
}


@dataclass
class ScriptArguments:
    """All arguments, by their subject."""

    model: ModelArguments
    data: ClassificationDataArguments
    augmentation: AugmentationArguments
    recipe: ClassificationRecipe
    run: RunArguments
    training: TrainingArguments

    def __post_init__(self) -> None:
        if self.run.check_data:
            logger.warning("--check_data is deprecated: use --bad_images list.")
            self.data.bad_images = "list"


def read_arguments(argv: list[str]) -> ScriptArguments:
    """Read the arguments from files of settings and the command line."""
    return parse(ScriptArguments, argv, "hf-internimage train classification", __doc__, DEFAULTS)


def build_model(arguments: ModelArguments, data: ClassificationData) -> PreTrainedModel:
    """Load the checkpoint with a head for the data's labels, or make a new model."""
    overrides = json_object("config_overrides", arguments.config_overrides)
    check_config_overrides(arguments, overrides)
    if arguments.image_size is not None:
        overrides["image_size"] = arguments.image_size
    if arguments.drop_path_rate is not None:
        overrides["drop_path_rate"] = arguments.drop_path_rate
    overrides |= label_fields(data.label_names)
    overrides["problem_type"] = "multi_label_classification" if data.multi_label else "single_label_classification"
    if arguments.model_name_or_path is not None:
        return load_pretrained(
            AutoModelForImageClassification,
            arguments.model_name_or_path,
            revision=arguments.model_revision,
            trust_remote_code=arguments.trust_remote_code,
            **overrides,
        )
    if arguments.size is not None:
        config: Any = auto.load(auto.MODELS[arguments.model_type].config).from_size(arguments.size, **overrides)
    else:
        config = AutoConfig.for_model(arguments.model_type, **overrides)
    return AutoModelForImageClassification.from_config(config)


def check_config_overrides(arguments: ModelArguments, overrides: dict[str, Any]) -> None:
    """Raise UsageError for fields that the model's configuration does not have, or that contradict a checkpoint."""
    if arguments.model_name_or_path is None:
        check_overrides("config_overrides", AutoConfig.for_model(arguments.model_type), overrides)
        return
    config = auto.load_config(
        arguments.model_name_or_path,
        revision=arguments.model_revision,
        trust_remote_code=arguments.trust_remote_code,
    )
    refuse_contradictions("config_overrides", arguments.model_name_or_path, config, overrides)


def build_processor(arguments: ScriptArguments, model: PreTrainedModel) -> Any:
    """Load the checkpoint's image processor, or make a new one, for images of the size in the arguments."""
    size, checkpoint = arguments.model.image_size, arguments.model.model_name_or_path
    if checkpoint is not None:
        changed = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}} if size else {}
        return AutoImageProcessor.from_pretrained(
            checkpoint,
            revision=arguments.model.model_revision,
            trust_remote_code=arguments.model.trust_remote_code,
            **changed,
        )
    if model.config.model_type in auto.model_types("AutoModelForImageClassification"):
        return default_image_processor(model.config)
    from transformers import CLIPImageProcessor  # makes the same pixels, and loads without this package

    side = size or getattr(model.config, "image_size", None) or 224
    return CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=InternImageImageProcessorPil.image_mean,
        image_std=InternImageImageProcessorPil.image_std,
    )


def build_trainer(
    arguments: ScriptArguments, data: ClassificationData, model: PreTrainedModel, processor: Any
) -> ClassificationTrainer:
    """Build the trainer with its data, augmented in training and prepared by the image processor in evaluation."""

    def make_augmentation() -> Augmentation:
        mean, std = list(processor.image_mean), list(processor.image_std)
        return Augmentation(target_size(processor), mean, std, arguments.augmentation)

    patience = arguments.run.early_stopping_patience
    return trainer_with_data(
        ClassificationTrainer,
        arguments,
        data,
        model,
        processor,
        make_augmentation,
        callbacks=[] if patience is None else [EarlyStoppingCallback(patience)],
        class_weights=data.class_weights() if arguments.run.class_weighting else None,
        data_collator=collate,
        compute_metrics=ComputeMetrics(len(data.label_names), data.multi_label),
        preprocess_logits_for_metrics=keep_scores if data.multi_label else keep_best,
    )


def apply_data_settings(arguments: ScriptArguments, data: ClassificationData) -> None:
    """Adapt the settings to the data.

    Raises:
        UsageError: for settings that do not fit together.
    """
    training = arguments.training
    if data.multi_label and training.metric_for_best_model == DEFAULTS["metric_for_best_model"]:
        training.metric_for_best_model = "mean_average_precision"
    if not training.do_train:
        return
    if arguments.data.streaming and training.max_steps <= 0:
        raise UsageError("A stream has no end that is known: set max_steps, and eval_steps and save_steps.")
    if arguments.data.streaming and "epoch" in (training.eval_strategy, training.save_strategy):
        raise UsageError("A stream has no epochs: set eval_strategy and save_strategy to steps.")
    if data.validation is None and arguments.run.early_stopping_patience is not None:
        raise UsageError("early_stopping_patience needs validation data: set validation_dir or train_val_split.")


TASK = Task(
    load_data=load_data,
    build_model=build_model,
    build_processor=build_processor,
    build_trainer=build_trainer,
    evaluate_and_report=evaluate_and_report,
    publish=publish,
    apply_data_settings=apply_data_settings,
)


def run(arguments: ScriptArguments) -> None:
    """Train, evaluate and publish an image classifier, as far as the arguments ask for it."""
    run_training(arguments, TASK)


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Return 0, or 1 after the error has been written to stderr."""
    return run_script(read_arguments, run, argv)
