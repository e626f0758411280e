# SPDX-License-Identifier: MIT
"""Predictions equal what the parts of the library give when they are called one by one."""

import inspect
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support.golden_data import tiny_config, write_official_folder
from support.prediction_models import (
    NAMES,
    classifier,
    cut_jpeg,
    dino,
    mask2former,
    picture,
    save,
    upernet,
    write_pictures,
)
from support.rcnn_tools import why_no_torchvision
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSemanticSegmentation

import hf_internimage
from hf_internimage import (
    InternImageBackbone,
    InternImageDetectionImageProcessor,
    InternImageForImageClassification,
    InternImageMaskRCNNConfig,
    predict,
)
from hf_internimage.heads import HEADS, head_config
from hf_internimage.ops import BackendError
from hf_internimage.ops.registry import BACKEND_VARIABLE
from hf_internimage.prediction import Classification, Detection, Predictor, Segmentation
from hf_internimage.prediction import predictor as predictor_module
from hf_internimage.segmentation import SemanticSegmenter
from hf_internimage.training.detection.main import HEADS as PROCESSORS


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder for each kind of model."""
    folder = tmp_path_factory.mktemp("models")
    makers = {"classifier": classifier, "upernet": upernet, "mask2former": mask2former, "dino": dino}
    return {name: str(make(folder / name)) for name, make in makers.items()}


@pytest.fixture
def photos(tmp_path):
    return write_pictures(tmp_path / "photos", 5)


def test_public_names():
    assert hf_internimage.predict is predictor_module.predict
    assert "predict" in dir(hf_internimage)


def test_predict_takes_all_settings_of_a_predictor():
    settings = dict(inspect.signature(Predictor).parameters)
    parameters = dict(inspect.signature(predict).parameters)
    assert {name: parameters[name].default for name in settings} == {
        name: one.default for name, one in settings.items()
    }
    assert parameters.keys() - settings.keys() == {"images", "progress"}


# ---- Classification ----


def test_classes_are_those_of_the_model(models, photos):
    predictions = predict(models["classifier"], photos, batch_size=2, top_k=3)
    processor = AutoImageProcessor.from_pretrained(models["classifier"])
    model = AutoModelForImageClassification.from_pretrained(models["classifier"]).eval()
    for path, prediction in zip(photos, predictions, strict=True):
        with torch.no_grad():
            logits = model(**processor(Image.open(path), return_tensors="pt")).logits[0]
        scores, classes = logits.softmax(0).topk(3)
        assert isinstance(prediction, Classification)
        assert (prediction.path, prediction.frame) == (path, None)
        assert prediction.labels == [NAMES[index] for index in classes]
        assert prediction.scores == pytest.approx(scores.tolist(), abs=1e-6)


def test_batches_change_nothing(models, photos):
    one, all_at_once = (predict(models["classifier"], photos, batch_size=size, top_k=5) for size in (1, 5))
    for a, b in zip(one, all_at_once, strict=True):
        assert a.labels == b.labels
        assert a.scores == pytest.approx(b.scores, abs=1e-5)
        assert sum(a.scores) == pytest.approx(1, abs=1e-5)


def test_a_threshold_leaves_classes_out(models, photos):
    (prediction,) = predict(models["classifier"], photos[0], top_k=5)
    limit = prediction.scores[1]
    (above,) = predict(models["classifier"], photos[0], top_k=5, threshold=limit)
    assert above.labels == prediction.labels[:2]


def test_several_labels_an_image_have_scores_of_their_own(tmp_path, photos):
    folder = classifier(tmp_path / "model", problem_type="multi_label_classification")
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**processor(Image.open(photos[0]), return_tensors="pt")).logits[0]
    (prediction,) = predict(folder, photos[0])
    assert prediction.scores == pytest.approx(logits.sigmoid().sort(descending=True).values.tolist(), abs=1e-6)


def test_released_folders_are_classifiers(tmp_path, photos):
    """Their configurations name the class without a head."""
    folder = write_official_folder("tiny_t", tmp_path / "official")
    predictor = Predictor(folder)
    assert predictor.task == "image-classification"
    assert type(predictor.model) is InternImageForImageClassification
    assert len(predict(folder, photos[0])[0].labels) == 5


def test_a_loaded_model(models, photos):
    model = AutoModelForImageClassification.from_pretrained(models["classifier"])
    with pytest.raises(ValueError, match=r"^The model is in training mode; call its eval\(\) first\.$"):
        predict(model.train(), photos)
    by_name, by_model = predict(models["classifier"], photos[0]), predict(model.eval(), photos[0])
    assert by_name[0].labels == by_model[0].labels
    assert by_name[0].scores == by_model[0].scores


def test_a_classifier_without_image_processor_gets_that_of_the_released_ones(models, photos, caplog):
    model = AutoModelForImageClassification.from_pretrained(models["classifier"]).eval()
    expected = predict(model, photos[0])
    for name in (None, "no-such-folder"):
        model.name_or_path = name
        model.config._name_or_path = name
        (prediction,) = predict(model, photos[0])
        assert prediction.scores == pytest.approx(expected[0].scores, abs=1e-3)  # torchvision resizes otherwise
    assert "images are prepared as for the released classifiers" in caplog.text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes(models, photos, dtype):
    (exact,), (prediction,) = (
        predict(models["classifier"], photos[0]),
        predict(models["classifier"], photos[0], dtype=dtype),
    )
    assert set(prediction.labels) == set(exact.labels)
    assert dict(zip(prediction.labels, prediction.scores, strict=True)) == pytest.approx(
        dict(zip(exact.labels, exact.scores, strict=True)), abs=0.02
    )


def test_a_backend_is_demanded_for_the_time_of_a_prediction(models, photos, monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, "cpu")
    predict(models["classifier"], photos[0], backend="torch")
    assert os.environ[BACKEND_VARIABLE] == "cpu"
    monkeypatch.delenv(BACKEND_VARIABLE)
    with pytest.raises(BackendError, match="cuda"):
        predict(models["classifier"], photos[0], backend="cuda")
    assert BACKEND_VARIABLE not in os.environ
    with pytest.raises(ValueError, match="backend is 'fast', expected one of"):
        predict(models["classifier"], photos[0], backend="fast")


def test_damaged_files_are_named_and_left_out(models, photos, caplog):
    Path(photos[1]).write_bytes(cut_jpeg())
    predictions = predict(models["classifier"], photos, batch_size=2)
    assert [prediction.path for prediction in predictions] == [photos[0], *photos[2:]]
    assert f"Left out {photos[1]}: cannot be decoded" in caplog.text
    pairs = list(Predictor(models["classifier"], batch_size=2)(photos))
    assert [source.path for source, _ in pairs] == photos
    assert [prediction is None for _, prediction in pairs] == [False, True, False, False, False]


def test_only_damaged_files_give_nothing(models, photos):
    Path(photos[0]).write_bytes(b"")
    assert predict(models["classifier"], photos[0]) == []


def test_outputs_that_are_not_numbers_are_refused(models, photos):
    model = AutoModelForImageClassification.from_pretrained(models["classifier"]).eval()
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    with pytest.raises(
        ValueError, match=r"00\.png: The model's logits are not numbers \(NaN\) in float32; use float32, or"
    ):
        predict(model, photos[0])
    assert not model._forward_hooks


# ---- Segmentation ----


def test_label_maps_are_those_of_the_segmenter(models, photos):
    predictions = predict(models["upernet"], photos)
    model = AutoModelForSemanticSegmentation.from_pretrained(models["upernet"]).eval()
    segment = SemanticSegmenter(model, AutoImageProcessor.from_pretrained(models["upernet"]))
    for path, prediction in zip(photos, predictions, strict=True):
        assert isinstance(prediction, Segmentation)
        image = Image.open(path)
        assert prediction.label_map.shape == (image.height, image.width)
        assert prediction.label_map.dtype == np.uint8
        assert (prediction.label_map == segment(image).numpy()).all()
        assert prediction.label_names == NAMES
    assert len(np.unique(predictions[0].label_map)) > 1


def test_windows_scales_and_mirror_images(models, photos):
    settings = {"crop_size": 48, "stride": 32, "scale_ratios": (1.0, 1.25), "flip": True}
    (prediction,) = predict(models["upernet"], photos[4], batch_size=3, **settings)
    model = AutoModelForSemanticSegmentation.from_pretrained(models["upernet"]).eval()
    processor = AutoImageProcessor.from_pretrained(models["upernet"])
    expected = SemanticSegmenter(model, processor, window_batch_size=3, **settings)(Image.open(photos[4]))
    assert (prediction.label_map == expected.numpy()).all()
    assert (prediction.label_map != predict(models["upernet"], photos[4])[0].label_map).any()


def test_many_classes_have_label_maps_of_16_bits(tmp_path):
    folder = upernet(tmp_path / "model", [f"class {index}" for index in range(300)])
    (prediction,) = predict(folder, picture())
    assert prediction.label_map.dtype == np.uint16
    assert prediction.label_map.max() > 255


def test_instances(models):
    predictor = Predictor(models["mask2former"], segmentation="instance", threshold=0.0, top_k=4)
    ((_, prediction),) = predictor(picture())
    assert isinstance(prediction, Detection)
    assert prediction.masks.shape == (len(prediction.labels), 40, 48)
    assert 1 <= len(prediction.labels) <= 4
    assert (np.diff(prediction.scores) <= 0).all()
    for mask, (left, top, right, bottom) in zip(prediction.masks, prediction.boxes.astype(int), strict=True):
        assert mask.any()
        inside = np.zeros_like(mask)
        inside[top:bottom, left:right] = True
        assert not (mask & ~inside).any()
        assert mask[top].any()
        assert mask[bottom - 1].any()
        assert mask[:, left].any()
        assert mask[:, right - 1].any()
    none = predict(models["mask2former"], picture(), segmentation="instance", threshold=1.0)[0]
    assert (none.boxes.shape, none.masks.shape) == ((0, 4), (0, 40, 48))


def test_panoptic_segments(models):
    (prediction,) = predict(models["mask2former"], picture(), segmentation="panoptic", threshold=0.0)
    assert prediction.segments
    assert [segment.id for segment in prediction.segments] == list(range(1, len(prediction.segments) + 1))
    for segment in prediction.segments:
        pixels = prediction.segment_map == segment.id
        assert pixels.any()
        assert {prediction.label_names[index] for index in prediction.label_map[pixels]} == {segment.label}
    assert (prediction.label_map[prediction.segment_map == 0] == 255).all()
    (none,) = predict(models["mask2former"], picture(), segmentation="panoptic", threshold=1.0)
    assert none.segments == []
    assert (none.label_map == 255).all()


# ---- Detection ----


def test_objects_are_those_of_the_image_processor(models, photos):
    predictions = predict(models["dino"], photos[:3], batch_size=2, threshold=0.0, top_k=7)
    predictor = Predictor(models["dino"])
    for path, prediction in zip(photos, predictions, strict=False):
        image = Image.open(path)
        with torch.no_grad():
            outputs = predictor.model(**predictor.image_processor(image, return_tensors="pt"))
        (expected,) = predictor.image_processor.post_process_object_detection(
            outputs, threshold=0.0, target_sizes=[image.size[::-1]], top_k=7
        )
        assert isinstance(prediction, Detection)
        assert (prediction.path, prediction.size, prediction.masks) == (path, image.size[::-1], None)
        assert prediction.labels == [NAMES[index] for index in expected["labels"]]
        assert prediction.class_indices.tolist() == expected["labels"].tolist()
        np.testing.assert_allclose(prediction.scores, expected["scores"], atol=1e-4)
        np.testing.assert_allclose(prediction.boxes, expected["boxes"], atol=0.01)
        assert prediction.boxes.dtype == prediction.scores.dtype == np.float32


def test_a_threshold_leaves_objects_out(models):
    (all_objects,) = predict(models["dino"], picture(), threshold=0.0)
    limit = float(all_objects.scores[3])
    (best,) = predict(models["dino"], picture(), threshold=limit)
    assert best.scores.tolist() == all_objects.scores[all_objects.scores > limit].tolist()
    (none,) = predict(models["dino"], picture(), threshold=1.0)
    assert none.boxes.shape == (0, 4)
    assert none.labels == []


@pytest.mark.parametrize("head", ["detr", "rt_detr"])
def test_heads_of_transformers(head, tmp_path):
    """Boxes of a batch are those of each image, also for image processors that would pad the batch."""
    small = {
        "detr": {
            "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 6,
        },
        "rt_detr": {
            "encoder_hidden_dim": 32, "d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_layers": 1, "num_queries": 6, "num_denoising": 0,
        },
    }  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, HEADS[head].model)(head_config(head, tiny_config(), num_labels=5, **small[head]))
    size = {"height": 64, "width": 64} if head == "rt_detr" else {"shortest_edge": 64, "longest_edge": 128}
    save(model, getattr(transformers, PROCESSORS[head])(do_normalize=True, size=size), tmp_path / "model")
    images = [picture(0), picture(1, 80, 40), picture(2, 40, 60)]
    together = predict(tmp_path / "model", images, batch_size=3, threshold=0.0)
    for image, prediction in zip(images, together, strict=True):
        (alone,) = predict(tmp_path / "model", image, threshold=0.0)
        assert len(alone.labels) > 0
        np.testing.assert_allclose(prediction.scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(prediction.boxes, alone.boxes, atol=1e-2)
        assert (prediction.boxes <= (image.width, image.height, image.width, image.height)).all()


@pytest.fixture
def mask_rcnn(tmp_path):
    """A folder with a configuration of Mask R-CNN, and the model if torchvision is there."""
    from support.rcnn_tools import tiny_config as tiny_rcnn_config

    folder = tmp_path / "rcnn"
    tiny_rcnn_config(score_threshold=0.0).save_pretrained(folder)
    InternImageDetectionImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(folder)
    return folder


@pytest.mark.skipif(why_no_torchvision() is None, reason="torchvision is installed")
def test_mask_rcnn_without_torchvision_says_what_to_install(mask_rcnn):
    assert InternImageMaskRCNNConfig.from_pretrained(mask_rcnn).model_type == "internimage_mask_rcnn"
    with pytest.raises(ImportError, match="torchvision"):
        predict(mask_rcnn, picture())


@pytest.mark.skipif(why_no_torchvision() is not None, reason=str(why_no_torchvision()))
def test_mask_rcnn_gives_boxes_and_masks(mask_rcnn):
    from hf_internimage.models.mask_rcnn import (
        InternImageMaskRCNNForInstanceSegmentation,
        post_process_instance_segmentation,
    )

    config = InternImageMaskRCNNConfig.from_pretrained(mask_rcnn)
    model = InternImageMaskRCNNForInstanceSegmentation(config).eval()
    model.save_pretrained(mask_rcnn)
    predictions = predict(mask_rcnn, [picture(0), picture(1)], batch_size=2, threshold=0.0, top_k=5)
    processor = AutoImageProcessor.from_pretrained(mask_rcnn)
    for image, prediction in zip([picture(0), picture(1)], predictions, strict=True):
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        (expected,) = post_process_instance_segmentation(outputs, 0.0, [image.size[::-1]])
        assert 0 < len(prediction.labels) <= 5
        np.testing.assert_allclose(prediction.scores, expected["scores"][:5], atol=1e-4)
        assert prediction.masks.shape == (len(prediction.labels), image.height, image.width)
        assert prediction.masks.dtype == bool


# ---- What is refused ----


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("classifier", {"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ("classifier", {"every": 0}, "every is 0, expected at least 1"),
        ("classifier", {"dtype": "int8"}, "dtype is 'int8', expected one of float32, bfloat16, float16"),
        ("classifier", {"device": "nowhere"}, "device is nowhere, which PyTorch does not find here"),
        ("classifier", {"flip": True}, "flip: of no use for image-classification with"),
        ("dino", {"segmentation": "panoptic"}, "segmentation: of no use for object-detection with"),
        ("upernet", {"segmentation": "all"}, "segmentation is 'all', expected one of semantic, instance, panoptic"),
        ("upernet", {"top_k": 3, "threshold": 0.5}, "top_k, threshold: of no use for semantic segmentation with"),
        ("upernet", {"crop_size": 32}, "Sliding windows need crop_size and stride"),
        ("upernet", {"segmentation": "panoptic"}, "which InternImageSegmentationImageProcessor cannot make"),
        ("mask2former", {"segmentation": "instance", "flip": True}, "flip: of no use for image-segmentation with"),
    ],
)
def test_settings_that_cannot_be_used(models, kind, settings, message):
    with pytest.raises(ValueError, match=message):
        predict(models[kind], picture(), **settings)


def test_models_without_a_task(tmp_path, photos):
    InternImageBackbone(tiny_config(out_features=["stage4"])).save_pretrained(tmp_path / "backbone")
    with pytest.raises(ValueError, match=r"backbone: lacks weights of InternImageForImageClassif"):
        predict(tmp_path / "backbone", photos)
    with pytest.raises(ValueError, match="model is a InternImageBackbone, expected one whose class ends in"):
        predict(InternImageBackbone(tiny_config(out_features=["stage4"])).eval(), photos)
    with pytest.raises(ValueError, match="nothing-here"):
        predict(str(tmp_path / "nothing-here"), photos)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(ValueError, match="holds BertModel, which neither classifies nor segments nor detects"):
        predict(tmp_path / "text", photos)


@pytest.mark.parametrize("head", ["grounding_dino", "mm_grounding_dino", "omdet_turbo", "oneformer"])
def test_models_that_read_texts_are_refused(head, tmp_path):
    model_type = getattr(transformers, HEADS[head].config).model_type
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=f"a {model_type} needs a text beside each image"):
        predict(tmp_path, picture())


def test_folders_that_do_not_fit_together(models, tmp_path):
    folder = Path(shutil.copytree(models["classifier"], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "channels": 32}))
    with pytest.raises(
        ValueError, match=r"model: has weights of other shapes than its configuration describes \(.*head"
    ):
        predict(folder, picture())
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="model: cannot be loaded: "):
        predict(folder, picture())


def test_images_that_become_too_large_are_left_out(models, tmp_path, caplog):
    """A classifier's image processor resizes the short side, whatever the long one becomes."""
    path = tmp_path / "strip.png"
    Image.new("RGB", (8, 4)).save(path)
    assert predict(models["classifier"], path, max_image_pixels=64 * 32 - 1) == []
    assert "strip.png: is too large (64x32 pixels after resizing; the limit is 2,047 pixels)" in caplog.text
    assert len(predict(models["classifier"], path, max_image_pixels=64 * 32)) == 1


def test_an_error_names_the_image_that_it_came_with(models, tmp_path):
    """transformers' image processor of Mask2Former cannot resize a strip of one pixel."""
    path = tmp_path / "strip.png"
    Image.new("RGB", (1, 400)).save(path)
    with pytest.raises(ValueError, match=r"strip\.png: Size must contain"):
        predict(models["mask2former"], [picture(), path])


def test_a_model_can_be_trained_after_a_prediction(models):
    model = AutoModelForImageClassification.from_pretrained(models["classifier"]).eval()
    predict(model, picture(), batch_size=1)
    pixels = AutoImageProcessor.from_pretrained(models["classifier"])(picture(), return_tensors="pt").pixel_values
    model(pixel_values=pixels, labels=torch.tensor([1])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.head.parameters())


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json; give the folder of a saved model"):
        predict(tmp_path, np.zeros((4, 4, 3), np.uint8))
