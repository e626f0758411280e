# SPDX-License-Identifier: MIT
"""Train or fine-tune an image classifier by InternImage's recipe, on any data set, on one device or many.

    python scripts/run_image_classification.py scripts/recipes/finetune.yaml --train_dir images --output_dir out
    accelerate launch --config_file scripts/accelerate/ddp.yaml scripts/run_image_classification.py \
        scripts/recipes/t.yaml --dataset_name ILSVRC/imagenet-1k --output_dir out

Files of settings (YAML or JSON) come first, later ones and then the command line win. All settings: --help. The same
command again continues an interrupted training from its last complete checkpoint. At the end the output folder holds
the model, its image processor, its card, the metrics as JSON, and pictures of the training, the confusions and the
worst mistakes. Needs the extra `train`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Python puts a script's folder first on the path, where scripts/evaluate.py would be found instead of the package.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    EarlyStoppingCallback,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from hf_internimage import InternImageConfig, InternImageImageProcessorPil
from hf_internimage.hub import repository as hub
from hf_internimage.training import plots as reports
from hf_internimage.training.classification import data, metrics
from hf_internimage.training.classification.augmentation import Augmentation, AugmentationArguments
from hf_internimage.training.classification.evaluation import judge, publish
from hf_internimage.training.classification.trainer import ClassificationRecipe, ClassificationTrainer
from hf_internimage.training.command_line import (
    UsageError,
    are_unnamed,
    checkpoint_labels,
    find_checkpoint,
    json_object,
    keep_last_model,
    parse,
    run_script,
    wanted_splits,
)
from hf_internimage.training.images import Augmented, check_images, target_size
from hf_internimage.training.streams import TrainingStream
from hf_internimage.training.trainer import EpochCallback

logger = logging.get_logger("run_image_classification")


@dataclass
class ModelArguments:
    """Which model is trained: a checkpoint, or a new one of a type and size."""

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


@dataclass
class RunArguments:
    """What else happens in a run."""

    class_weighting: bool = field(
        default=False, metadata={"help": "Weigh classes in the training loss by the inverse of their frequency."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better one."}
    )
    check_data: bool = field(
        default=False, metadata={"help": "Decode every image first, and list all that cannot be used."}
    )
    license: str | None = field(default=None, metadata={"help": "Licence of the weights, for the model's card."})


# Where these differ from the other scripts' and transformers' own.
DEFAULTS: dict[str, Any] = {
    "output_dir": "image_classification_output",
    "lr_scheduler_type": "cosine",
    "metric_for_best_model": "accuracy",
    "per_device_eval_batch_size": 64,
}


@dataclass
class Parts:
    """All arguments, by what they are about."""

    model: ModelArguments
    data: data.DataArguments
    augmentation: AugmentationArguments
    recipe: ClassificationRecipe
    run: RunArguments
    training: TrainingArguments


def read_arguments(argv: list[str]) -> Parts:
    """The arguments' dataclasses, from files of settings and the command line."""
    return parse(Parts, argv, __doc__, DEFAULTS)


def build_model(arguments: ModelArguments, label_names: list[str], multi_label: bool) -> PreTrainedModel:
    """The checkpoint with a head for these labels, or a new model."""
    overrides = json_object("config_overrides", arguments.config_overrides)
    if arguments.image_size is not None:
        overrides["image_size"] = arguments.image_size
    if arguments.drop_path_rate is not None:
        overrides["drop_path_rate"] = arguments.drop_path_rate
    overrides |= {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
        "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
    }
    if arguments.model_name_or_path is not None:
        return AutoModelForImageClassification.from_pretrained(
            arguments.model_name_or_path,
            revision=arguments.model_revision,
            trust_remote_code=arguments.trust_remote_code,
            ignore_mismatched_sizes=True,  # the head, for other labels
            **overrides,
        )
    if arguments.model_type == "internimage" and arguments.size is not None:
        config: Any = InternImageConfig.from_size(arguments.size, **overrides)
    elif arguments.size is not None:
        raise UsageError(f"size={arguments.size} is InternImage's: use config_overrides for {arguments.model_type}.")
    else:
        config = AutoConfig.for_model(arguments.model_type, **overrides)
    return AutoModelForImageClassification.from_config(config)


def check_labels(arguments: ModelArguments, label_names: list[str]) -> None:
    """Before an evaluation without training: the checkpoint's classes have to be those of the data.

    Raises:
        UsageError: if they are not, or there is no checkpoint.
    """
    theirs = checkpoint_labels(arguments.model_name_or_path, arguments.model_revision, arguments.trust_remote_code)
    if theirs != label_names and not (are_unnamed(theirs) and len(theirs) == len(label_names)):
        raise UsageError(
            f"The model's {len(theirs)} classes ({', '.join(theirs[:3])}...) are not the data's {len(label_names)} "
            f"({', '.join(label_names[:3])}...) in that order: use scripts/evaluate.py, which matches them by name."
        )


def build_processor(arguments: ModelArguments, model: PreTrainedModel) -> Any:
    """The checkpoint's image processor, or a new one; for images of the wanted size."""
    size = arguments.image_size
    if arguments.model_name_or_path is not None:
        changed = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}} if size else {}
        return AutoImageProcessor.from_pretrained(
            arguments.model_name_or_path,
            revision=arguments.model_revision,
            trust_remote_code=arguments.trust_remote_code,
            **changed,
        )
    if model.config.model_type == "internimage":
        return hub.default_image_processor(model.config)
    from transformers import CLIPImageProcessor  # does the same, and needs no package of ours

    side = size or getattr(model.config, "image_size", None) or 224
    return CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=InternImageImageProcessorPil.image_mean,
        image_std=InternImageImageProcessorPil.image_std,
    )


def build_trainer(
    parts: Parts, loaded: data.LoadedData, model: PreTrainedModel, processor: Any
) -> ClassificationTrainer:
    """The trainer with its data, augmented in training and prepared by the image processor in evaluation."""
    training, recipe = parts.training, parts.recipe
    evaluation = loaded.evaluation_transform(processor)
    callbacks: list[Any] = []
    train: Any = None
    if loaded.train is not None:
        augmentation = Augmentation(
            target_size(processor), list(processor.image_mean), list(processor.image_std), parts.augmentation
        )
        pixels = Augmented(augmentation, training.seed)
        callbacks.append(EpochCallback(pixels.epoch))
        transform = loaded.transform(pixels)
        if parts.data.streaming:
            train = TrainingStream(
                loaded.train,
                transform,
                training.seed,
                parts.data.shuffle_buffer,
                training.process_index,
                training.world_size,
            )
        else:
            train = loaded.train.with_transform(transform)
    if parts.run.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(parts.run.early_stopping_patience))
    return ClassificationTrainer(
        model=model,
        args=training,
        recipe=recipe,
        class_weights=loaded.class_weights() if parts.run.class_weighting else None,
        train_dataset=train,
        eval_dataset=None if loaded.validation is None else loaded.validation.with_transform(evaluation),
        processing_class=processor,
        callbacks=callbacks,
        compute_metrics=metrics.ComputeMetrics(len(loaded.label_names), loaded.multi_label),
        preprocess_logits_for_metrics=metrics.keep_scores if loaded.multi_label else metrics.keep_best,
    )


def settle(parts: Parts, loaded: data.LoadedData) -> None:
    """Set what follows from the data.

    Raises:
        UsageError: for settings that do not fit together.
    """
    training = parts.training
    if loaded.multi_label and training.metric_for_best_model == DEFAULTS["metric_for_best_model"]:
        training.metric_for_best_model = "mean_average_precision"
    if not training.do_train:
        return
    if parts.data.streaming and training.max_steps <= 0:
        raise UsageError("A stream has no end that is known: set max_steps, and eval_steps and save_steps.")
    if parts.data.streaming and "epoch" in (training.eval_strategy, training.save_strategy):
        raise UsageError("A stream has no epochs: set eval_strategy and save_strategy to steps.")
    if loaded.validation is None:
        keep_last_model(training)
        if parts.run.early_stopping_patience is not None:
            raise UsageError("early_stopping_patience needs validation data: set validation_dir or train_val_split.")


def check(loaded: data.LoadedData) -> None:
    """Decode every image of every split.

    Raises:
        UsageError: listing all that fail.
    """
    found = []
    for name in ("train", "validation", "test"):
        split = getattr(loaded, name)
        if split is not None:
            found += [f"{name}: {text}" for _, text in check_images(split, loaded.image_column, loaded.max_pixels)]
    if found:
        raise UsageError("\n".join([f"{len(found)} images cannot be used:", *found]))


def run(parts: Parts) -> None:
    training = parts.training
    set_seed(training.seed)
    checkpoint = find_checkpoint(training) if training.do_train else None
    with training.main_process_first(desc="reading the data"):
        loaded = data.load_data(parts.data, training.seed, wanted_splits(training))
        if parts.run.check_data:
            check(loaded)
    settle(parts, loaded)
    if not training.do_train:
        check_labels(parts.model, loaded.label_names)
    model = build_model(parts.model, loaded.label_names, loaded.multi_label)
    processor = build_processor(parts.model, model)
    trainer = build_trainer(parts, loaded, model, processor)
    output = Path(str(training.output_dir))

    if training.do_train:
        trainer.train_and_save(checkpoint)
    evaluation = None
    if training.do_eval:
        if loaded.validation is None:
            logger.warning("There are no validation data to evaluate on.")
        else:
            evaluation = judge(trainer, loaded.validation, "eval", parts.data, loaded)
    if training.do_predict:
        if loaded.test is None:
            raise UsageError("There are no test data: set test_dir or test_split_name.")
        judge(trainer, loaded.test, "test", parts.data, loaded)
    if training.do_train:
        if trainer.is_world_process_zero():
            reports.draw_training(trainer.state.log_history, output / "training.png")
        publish(trainer, evaluation, base_model=parts.model.model_name_or_path, license=parts.run.license)


def main(argv: list[str] | None = None) -> int:
    return run_script(read_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
