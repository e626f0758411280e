# SPDX-License-Identifier: MIT
"""Write predictions to a folder: tables, label maps, and pictures of them."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..atomic_write import atomic_write, is_free
from ..plain_text import count_of
from . import loading
from .coco import coco_results
from .drawing import BACKGROUND, blend, class_colours, draw_contact_sheet, draw_legend, draw_objects, tile
from .results import NO_CLASS_8_BIT, Classification, Detection, Segmentation
from .sources import OUTPUT_FILE, Source

DEFAULT_FOLDER = "predictions"
_QUALITY = 92  # of JPEG files
_JPEG_SIDE = 65_500  # most pixels
_MOST_TILES = 60  # of the contact sheet
_SHOWN_CLASSES = 5  # in the summary


def new_folder(name: str | None) -> Path:
    """Return the path of a folder to write to, which is new or empty.

    Args:
        name: of the folder; None for "predictions", or "predictions-2" and so on where there is one already.

    Raises:
        ValueError: if the folder holds anything, or is a file.
    """
    if name is not None:
        folder = Path(name)
        if not is_free(folder):
            raise ValueError(f"{name}: is not an empty folder; name a new one, or remove it first.")
        return folder
    folder, number = Path(DEFAULT_FOLDER), 1
    while folder.exists():
        number += 1
        folder = Path(f"{DEFAULT_FOLDER}-{number}")
    return folder


class Files:
    """The files of predictions in a folder. Pictures are written one by one, and tables by `finish`.

    Args:
        folder: is made if needed.
        model_name: folder or repository of the model.
        label_names: names of the classes by their numbers.
    """

    def __init__(self, folder: Path, model_name: str, label_names: list[str]) -> None:
        self.folder, self.model_name, self.label_names = folder, model_name, label_names
        self.count = 0
        self._names: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, source: Source, prediction: Any) -> None:
        """Write the pictures of a prediction, and keep what the tables need."""
        raise NotImplementedError

    def finish(self, left_out: list[str]) -> list[str]:
        """Write the tables, and return the names of the files and folders that were written.

        Args:
            left_out: errors of the files that could not be used.
        """
        raise NotImplementedError

    def summary(self) -> str:
        """Return a line about the classes that were predicted."""
        raise NotImplementedError

    def new_name(self, source: Source) -> str:
        """Return a name for files: that of the source's file, its frame, and a number if that name is taken."""
        stem = "image" if source.path is None else Path(source.path).stem
        if source.frame is not None:
            stem += f"_{source.frame:06d}"
        name, number = stem, 1
        while name.casefold() in self._names:  # file systems may not tell A from a
            number += 1
            name = f"{stem}-{number}"
        self._names.add(name.casefold())
        return name

    def new_path(self, kind: str, name: str) -> Path:
        """Return the path of a file in a subfolder, which is made if needed."""
        (self.folder / kind).mkdir(exist_ok=True)
        return self.folder / kind / name

    def save_picture(self, picture: Image.Image, kind: str, name: str) -> str:
        """Write a picture to a subfolder, as PNG if it is too large for JPEG; return its path in the folder."""
        path = self.new_path(kind, f"{name}.{'jpg' if max(picture.size) <= _JPEG_SIDE else 'png'}")
        picture.save(path, quality=_QUALITY)
        return f"{kind}/{path.name}"

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file that appears complete or not at all."""
        with atomic_write(self.folder / name) as new:
            new.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


class ClassificationFiles(Files):
    """predictions.csv, predictions.json and contact_sheet.jpg."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._predictions: list[Classification] = []
        self._tiles: list[tuple[Image.Image, str, Classification]] = []
        self._step = 1

    def add(self, source: Source, prediction: Any) -> None:
        self.count += 1
        self._predictions.append(prediction)
        if (self.count - 1) % self._step == 0:
            image: Any = source.image
            self._tiles.append((tile(image), _name(source), prediction))
        if len(self._tiles) > _MOST_TILES:  # every second one, so that they are spread evenly over all images
            self._tiles, self._step = self._tiles[::2], 2 * self._step

    def finish(self, left_out: list[str]) -> list[str]:
        with atomic_write(self.folder / "predictions.csv") as new:
            self._write_csv(new)
        rows = [
            {
                **_place(prediction),
                "labels": prediction.labels,
                "scores": [round(score, 6) for score in prediction.scores],
            }
            for prediction in self._predictions
        ]
        content = {"model": self.model_name, "task": loading.CLASSIFICATION, "images": rows, "left_out": left_out}
        self.write_json(OUTPUT_FILE, content)
        shown, count = len(self._tiles), self.count
        title = count_of(count, "image") if shown == count else f"{shown} of {count:,} images, spread evenly"
        sheet = draw_contact_sheet(self._tiles, f"{title}, classified by {self.model_name}")
        sheet.save(self.folder / "contact_sheet.jpg", quality=_QUALITY)
        return ["predictions.csv", OUTPUT_FILE, "contact_sheet.jpg"]

    def summary(self) -> str:
        counts = Counter(prediction.labels[0] for prediction in self._predictions if prediction.labels)
        return f"most probable: {_listed(counts)}"

    def _write_csv(self, path: Path) -> None:
        ranks = max((len(prediction.labels) for prediction in self._predictions), default=0)
        frames = any(prediction.frame is not None for prediction in self._predictions)
        header = ["path", *(["frame"] if frames else [])]
        for rank in range(1, ranks + 1):
            header += ["label", "score"] if rank == 1 else [f"label_{rank}", f"score_{rank}"]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for prediction in self._predictions:
                row = [prediction.path or "", *([prediction.frame] if frames else [])]
                for label, score in zip(prediction.labels, prediction.scores, strict=True):
                    row += [label, f"{score:.6f}"]
                writer.writerow(row)


class SegmentationFiles(Files):
    """predictions.json, label_maps/, overlays/, legend.png and, of panoptic segmentation, segment_maps/."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._rows: list[dict[str, Any]] = []
        self._pixels = np.zeros(len(self.label_names), np.int64)
        self._colours = class_colours(len(self.label_names))
        self._has_segments = False

    def add(self, source: Source, prediction: Any) -> None:
        self.count += 1
        image: Any = source.image
        name, label_map = self.new_name(source), prediction.label_map
        self._as_image(label_map).save(self.new_path("label_maps", f"{name}.png"))
        blended = Image.fromarray(blend(image, label_map, self.label_names))
        pixels = np.bincount(label_map.ravel(), minlength=len(self.label_names))[: len(self.label_names)]
        self._pixels += pixels
        shares = {
            self.label_names[index]: round(pixels[index] / label_map.size, 6)
            for index in np.argsort(-pixels, kind="stable").tolist()
            if pixels[index]
        }
        row = {
            **_place(prediction),
            "label_map": f"label_maps/{name}.png",
            "overlay": self.save_picture(blended, "overlays", name),
            "shares": shares,
        }
        if prediction.segment_map is not None:
            self._has_segments = True
            segment_map = Image.fromarray(prediction.segment_map.astype(np.uint16))
            segment_map.save(self.new_path("segment_maps", f"{name}.png"))
            row["segment_map"] = f"segment_maps/{name}.png"
            row["segments"] = [
                {"id": segment.id, "label": segment.label, "score": round(segment.score, 6)}
                for segment in prediction.segments
            ]
        self._rows.append(row)

    def finish(self, left_out: list[str]) -> list[str]:
        classes = [
            {"index": index, "name": name, "colour": "#" + bytes(colour).hex()}
            for index, (name, colour) in enumerate(zip(self.label_names, self._colours, strict=True))
        ]
        content = {"model": self.model_name, "task": loading.SEGMENTATION, "classes": classes}
        self.write_json(OUTPUT_FILE, {**content, "images": self._rows, "left_out": left_out})
        draw_legend(self.label_names, np.flatnonzero(self._pixels).tolist()).save(self.folder / "legend.png")
        segment_maps = ["segment_maps/"] if self._has_segments else []
        return [OUTPUT_FILE, "legend.png", "label_maps/", *segment_maps, "overlays/"]

    def summary(self) -> str:
        total = max(1, int(self._pixels.sum()))
        order = np.argsort(-self._pixels, kind="stable")[:_SHOWN_CLASSES].tolist()
        parts = [
            f"{self.label_names[index]} {self._pixels[index] / total:.1%}" for index in order if self._pixels[index]
        ]
        return f"pixels: {', '.join(parts) or 'of no class'}"

    def _as_image(self, label_map: np.ndarray) -> Image.Image:
        """Return a label map as an image of the same numbers; up to 255 classes have their colours as its palette."""
        image = Image.fromarray(label_map)
        if label_map.dtype == np.uint8:
            palette = np.zeros((NO_CLASS_8_BIT + 1, 3), np.uint8)
            palette[: len(self._colours)] = self._colours
            if BACKGROUND in self.label_names:
                palette[self.label_names.index(BACKGROUND)] = 0
            image.putpalette(palette.tobytes())
        return image


class DetectionFiles(Files):
    """predictions.json, COCO's list of results; images.json with its images and categories; and boxes/."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._images: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()

    def add(self, source: Source, prediction: Any) -> None:
        self.count += 1
        image: Any = source.image
        picture = draw_objects(image, prediction, len(self.label_names))
        drawn = self.save_picture(picture, "boxes", self.new_name(source))
        height, width = prediction.size
        place = {"file_name": prediction.path or drawn}
        if prediction.frame is not None:
            place["frame"] = prediction.frame
        self._images.append({"id": self.count, **place, "width": width, "height": height, "drawn": drawn})
        self._results += coco_results(prediction, self.count)
        self._counts.update(prediction.labels)

    def finish(self, left_out: list[str]) -> list[str]:
        self.write_json(OUTPUT_FILE, self._results)
        content = {
            "info": {"model": self.model_name, "left_out": left_out},
            "images": self._images,
            "categories": [{"id": index, "name": name} for index, name in enumerate(self.label_names)],
            "annotations": [],
        }
        self.write_json("images.json", content)
        return [OUTPUT_FILE, "images.json", "boxes/"]

    def summary(self) -> str:
        if not self._counts:
            return "objects: none; a lower --threshold shows weaker ones"
        return f"objects: {self._counts.total():,} ({_listed(self._counts)})"


def files_for(task: str, kind: str) -> type[Files]:
    """Return the class that writes the predictions of a task, where segmentation is of a kind."""
    if task == loading.CLASSIFICATION:
        return ClassificationFiles
    if task == loading.DETECTION or kind == "instance":
        return DetectionFiles
    return SegmentationFiles


def _place(prediction: Classification | Segmentation | Detection) -> dict[str, Any]:
    place: dict[str, Any] = {"path": prediction.path}
    if prediction.frame is not None:
        place["frame"] = prediction.frame
    return place


def _name(source: Source) -> str:
    name = "image" if source.path is None else Path(source.path).name
    return name if source.frame is None else f"{name}, frame {source.frame}"


def _listed(counts: Counter[str]) -> str:
    parts = [f"{name} {count:,}" for name, count in counts.most_common(_SHOWN_CLASSES)]
    more = len(counts) - _SHOWN_CLASSES
    return (", ".join(parts) or "none") + (f" and {more} more" if more > 0 else "")


__all__ = ["DEFAULT_FOLDER", "Files", "files_for", "new_folder"]
