# SPDX-License-Identifier: MIT
"""Numbers in the scripts' arguments: what they are if not given, and the ends of their ranges."""

import re

import pytest
import torch

from hf_internimage.training.classification import main as classification
from hf_internimage.training.classification.augmentation import AugmentationArguments
from hf_internimage.training.classification.mixing import MixingArguments
from hf_internimage.training.detection import main as detection
from hf_internimage.training.detection.augmentation import DetectionAugmentationArguments
from hf_internimage.training.segmentation import main as segmentation
from hf_internimage.training.segmentation.augmentation import SegmentationAugmentationArguments
from hf_internimage.training.sources import SourceArguments
from hf_internimage.training.trainer import RecipeArguments

LITTLE = 1e-9
SHARE = ([0, 1], [-LITTLE, 1 + LITTLE])
BELOW_ONE = ([0, 1 - LITTLE], [-LITTLE, 1])
NOT_NEGATIVE = ([0, LITTLE], [-LITTLE])
ONE_OR_MORE = ([None, 1], [0])

# class -> field -> numbers that are taken, and that are refused
RANGES = {
    AugmentationArguments: {
        "crop_scale_min": SHARE,
        "crop_ratio_max": ([1], [1 - LITTLE]),
        "flip_probability": SHARE,
        "rand_augment_magnitude": ([0, 10], [-LITTLE, 10 + LITTLE]),
        "color_jitter": SHARE,
        "erase_probability": SHARE,
    },
    MixingArguments: {
        "mixup_alpha": NOT_NEGATIVE,
        "cutmix_alpha": NOT_NEGATIVE,
        "mixing_probability": SHARE,
        "cutmix_share": SHARE,
    },
    DetectionAugmentationArguments: {
        "flip_probability": SHARE,
        "crop_probability": SHARE,
        "resize_min": ([LITTLE, 1.0], [0, 1.0 + LITTLE]),  # resize_max is 1
        "resize_max": ([0.6], [0.6 - LITTLE]),  # resize_min
        "resize_count": ([0], [-1]),
    },
    SegmentationAugmentationArguments: {
        "crop_size": ([[1], [1, 2], 1], [[0], [4, 0], [], [1, 2, 3]]),
        "scale_min": ([LITTLE, 2.0], [0, 2.0 + LITTLE]),  # scale_max is 2
        "scale_max": ([0.5], [0.5 - LITTLE]),  # scale_min
        "crop_most_of_a_class": ([LITTLE, 1], [0, 1 + LITTLE]),
        "flip_probability": SHARE,
    },
    SourceArguments: {
        "train_val_split": BELOW_ONE,
        "max_train_samples": ONE_OR_MORE,
        "max_eval_samples": ONE_OR_MORE,
        "max_image_pixels": ([1], [0]),
    },
    RecipeArguments: {
        "total_train_batch_size": ONE_OR_MORE,
        "learning_rate_batch_size": ONE_OR_MORE,
        "ema_decay": BELOW_ONE,
    },
}
NEEDED = {SourceArguments: {"train_dir": "images"}}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, fields in RANGES.items() for name in fields])
def test_ends_of_a_range(kind, name):
    taken, refused = RANGES[kind][name]
    for value in taken:
        assert getattr(kind(**NEEDED.get(kind, {}), **{name: value}), name) in (value, [value])
    for value in refused:
        with pytest.raises(ValueError, match=rf"\b{name} (is )?{re.escape(str(value))}"):
            kind(**NEEDED.get(kind, {}), **{name: value})


DATA = {
    "train_val_split": 0.15, "max_image_pixels": 178_956_970, "bad_images": "stop", "max_train_samples": None,
    "max_eval_samples": None, "data_cache_dir": None, "dataset_revision": None,
}  # fmt: skip
AVERAGE = {"ema_decay": 0, "ema_warmup": True, "layer_decay": 1, "learning_rate_batch_size": None}
SYSTEM = {
    **AVERAGE, "backbone_lr_scale": 1, "sampling_lr_scale": 1, "warmup_start_ratio": 1e-6, "polynomial_power": 1,
    "lr_drops": [],
}  # fmt: skip
TRAINING = {
    "report_to": ["tensorboard"], "eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 2,
    "logging_steps": 20, "load_best_model_at_end": True, "hub_strategy": "end", "do_train": True, "do_eval": True,
    "remove_unused_columns": False, "logging_nan_inf_filter": False, "ddp_find_unused_parameters": False,
    "dataloader_pin_memory": torch.accelerator.is_available(),
}  # fmt: skip
RUN = {"overwrite_output_dir": False, "ignore_data_changes": False, "save_on_interrupt": False, "license": None}
# script -> group of arguments -> their values without options; those of the augmentation are the original's
DEFAULTS = {
    classification: {
        "model": {"model_type": "internimage", "model_revision": "main", "trust_remote_code": False},
        "data": {**DATA, "streaming": False, "shuffle_buffer": 1000},
        "augmentation": {
            "crop_scale_min": 0.08, "crop_ratio_max": 4 / 3, "flip_probability": 0.5, "rand_augment_magnitude": 9,
            "rand_augment_std": 0.5, "rand_augment_operations": 2, "color_jitter": 0.4, "erase_probability": 0.25,
        },
        "recipe": {
            **AVERAGE, "mixup_alpha": 0, "cutmix_alpha": 0, "mixing_probability": 1, "cutmix_share": 0.5,
            "warmup_learning_rate": 0, "minimum_learning_rate": 0, "geometry_lr_scale": 1,
        },
        "run": {**RUN, "class_weighting": False, "early_stopping_patience": None, "check_data": False},
        "training": {
            **TRAINING, "lr_scheduler_type": "cosine", "metric_for_best_model": "accuracy",
            "per_device_train_batch_size": 8, "per_device_eval_batch_size": 64, "dataloader_drop_last": False,
            "output_dir": "image_classification_output", "batch_eval_metrics": False,
        },
    },
    segmentation: {
        "model": {"head": "upernet", "model_revision": "main"},
        "data": DATA,
        "augmentation": {
            "crop_size": [512], "scale_min": 0.5, "scale_max": 2, "crop_most_of_a_class": 0.75,
            "flip_probability": 0.5, "color_distortion": True,
        },
        "inference": {
            "inference": "whole", "inference_windows": 1, "tta_ratios": [1], "tta_flip": False, "overlays": 16,
        },
        "recipe": SYSTEM,
        "run": RUN,
        "training": {
            **TRAINING, "lr_scheduler_type": "polynomial", "metric_for_best_model": "mean_iou",
            "per_device_train_batch_size": 2, "per_device_eval_batch_size": 1, "dataloader_drop_last": True,
            "output_dir": "semantic_segmentation_output", "batch_eval_metrics": True,
        },
    },
    detection: {
        "model": {"head": "dino", "model_revision": "main"},
        "data": {**DATA, "objects_column_name": "objects", "box_format": "xywh", "train_without_objects": True},
        "augmentation": {
            "flip_probability": 0.5, "crop_probability": 0.5, "resize_min": 0.6, "resize_max": 1, "resize_count": 11,
        },
        "recipe": SYSTEM,
        "run": {**RUN, "overlays": 16, "overlay_threshold": 0.4},
        "training": {
            **TRAINING, "lr_scheduler_type": "constant_with_warmup", "metric_for_best_model": "map",
            "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "dataloader_drop_last": False,
            "output_dir": "object_detection_output", "batch_eval_metrics": False,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("script", DEFAULTS, ids=lambda script: script.__name__.split(".")[-2])
def test_values_without_options(script):
    arguments = script.read_arguments(["--train_dir=images", "--use_cpu=true"])
    assert not arguments.training.do_predict
    for group, expected in DEFAULTS[script].items():
        values = vars(getattr(arguments, group))
        assert {name: values[name] for name in expected} == expected, group
        if group != "training":
            others = {name: value for name, value in values.items() if name not in expected and value not in (None, [])}
            assert others == ({"train_dir": "images"} if group == "data" else {}), group
