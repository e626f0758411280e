# SPDX-License-Identifier: MIT
"""The three training scripts with tiny data and models: a few images, two epochs of two or three steps."""

import shutil

from PIL import Image

from hf_internimage.training.classification import main as classification
from hf_internimage.training.detection import main as detection
from hf_internimage.training.segmentation import main as segmentation
from support import detection_scenes, segmentation_scenes
from support.training_scripts import as_arguments

SMALL = '{"channels": 16, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}'
COMMON = {
    "train_dir": "train", "validation_dir": "validation", "output_dir": "out", "config_overrides": SMALL,
    "num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "ema_decay": 0.5,
    "logging_steps": 1, "use_cpu": True, "disable_tqdm": True, "report_to": "none",
}  # fmt: skip


class Classification:
    main = staticmethod(classification.main)
    own = {"image_size": 16, "data_cache_dir": "cache"}
    changed = {"mixup_alpha": 0.4}

    @staticmethod
    def write(folder):
        for split, count in (("train", 4), ("validation", 2)):
            for label, name in enumerate(("blue", "green", "red")):
                (folder / split / name).mkdir(parents=True)
                for index in range(count):
                    colour = tuple(200 if channel == 2 - label else 30 * index for channel in range(3))
                    Image.new("RGB", (16, 16), colour).save(folder / split / name / f"{index}.png")

    @staticmethod
    def rename_class(folder):
        for split in ("train", "validation"):
            (folder / split / "red").rename(folder / split / "scarlet")

    @staticmethod
    def add_examples(folder):
        for index in (0, 1):
            shutil.copyfile(folder / "train" / "red" / f"{index}.png", folder / "train" / "red" / f"{index + 8}.png")


class Segmentation:
    main = staticmethod(segmentation.main)
    own = {
        "label_names_file": "names.txt", "head_overrides": '{"hidden_size": 32, "auxiliary_channels": 16}',
        "shortest_edge": 32, "size_divisor": 8, "crop_size": 32, "overlays": 0,
    }  # fmt: skip
    changed = {"scale_max": 1.1}
    write = staticmethod(segmentation_scenes.write_all)

    @staticmethod
    def rename_class(folder):
        names = (folder / "names.txt").read_text().splitlines()
        (folder / "names.txt").write_text("\n".join([*names[:-1], "other"]))

    @staticmethod
    def add_examples(folder):
        for kind in ("images", "masks"):
            for file in sorted((folder / "train" / kind).iterdir())[:2]:
                shutil.copyfile(file, file.with_stem(f"another-{file.stem}"))


class Detection:
    main = staticmethod(detection.main)
    own = {
        "head_overrides": '{"d_model": 32, "num_feature_levels": 3, "encoder_layers": 1, "decoder_layers": 1, '
        '"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, '
        '"num_queries": 6, "num_denoising": 4}',
        "shortest_edge": 40, "overlays": 0,
    }  # fmt: skip
    changed = {"flip_probability": 0.1}

    @staticmethod
    def write(folder):
        detection_scenes.coco(folder / "train", 8)
        detection_scenes.coco(folder / "validation", 2, first=8)

    @staticmethod
    def rename_class(folder):
        for split in ("train", "validation"):
            file = folder / split / "annotations.json"
            file.write_text(file.read_text().replace('"disc"', '"ring"'))

    @staticmethod
    def add_examples(folder):
        shutil.rmtree(folder / "train")
        detection_scenes.coco(folder / "train", 10)


TASKS = {"classification": Classification, "segmentation": Segmentation, "detection": Detection}


def arguments(task, **changes):
    """Return the arguments of a task's script, for data that its `write` has put into the working directory."""
    return as_arguments({**COMMON, **task.own, **changes})
