# SPDX-License-Identifier: MIT
"""Which revision of which checkpoint models and image processors come from, and what the trainers are given."""

from types import SimpleNamespace

import pytest
import torch
from support.golden_data import tiny_config
from support.golden_detectors import tiny_dino_config
from transformers import EarlyStoppingCallback, UperNetConfig

from hf_internimage import InternImageImageProcessorPil, InternImageSegmentationImageProcessor, heads
from hf_internimage.models import auto
from hf_internimage.training import system_models
from hf_internimage.training.classification import evaluate_checkpoint
from hf_internimage.training.classification import main as classification
from hf_internimage.training.classification.metrics import keep_best, keep_scores
from hf_internimage.training.command_line import UsageError
from hf_internimage.training.detection import main as detection
from hf_internimage.training.segmentation import main as segmentation

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SOURCE = {"revision": "v2", "trust_remote_code": True}


class Data:
    label_names, multi_label = ("cat", "dog"), False


class Noted:
    """Stands for an Auto class or a function; keeps the arguments of its calls."""

    def __init__(self, result):
        self.result, self.calls = result, []

    def __call__(self, *arguments, **options):
        self.calls.append((arguments, options))
        return self.result

    from_pretrained = from_config = __call__


def of_script(script, **model):
    return SimpleNamespace(
        model=script.ModelArguments(**model),
        data=SimpleNamespace(reduce_labels=False),
        augmentation=SimpleNamespace(crop=(48, 64)),
        inference=SimpleNamespace(segmenter=lambda model, processor: None),
    )


# ---- Classification ----


def test_a_classifier_is_of_its_revision(monkeypatch):
    loaded = torch.nn.Linear(1, 1)
    info = {"mismatched_keys": [("head.weight", (1, 1), (2, 1))], "missing_keys": {"norm.layers.0.bias"}}
    config, model, processor = Noted(tiny_config()), Noted((loaded, info)), Noted("processor")
    monkeypatch.setattr(auto, "load_config", config)
    monkeypatch.setattr(classification, "AutoModelForImageClassification", model)
    monkeypatch.setattr(classification, "AutoImageProcessor", processor)
    named = {"model_name_or_path": "me/model", "model_revision": "v2", "trust_remote_code": True}
    arguments = of_script(
        classification, **named, image_size=48, drop_path_rate=0.0, config_overrides='{"cls_scale": 2.0}'
    )
    assert classification.build_model(arguments.model, Data()) is loaded
    assert loaded.new_modules == ["head", "norm.layers"]
    assert config.calls == [(("me/model",), SOURCE)]
    fields = {"cls_scale": 2.0, "image_size": 48, "drop_path_rate": 0.0, "problem_type": "single_label_classification"}
    fields |= {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    options = {"ignore_mismatched_sizes": True, "output_loading_info": True}
    assert model.calls == [(("me/model",), {**SOURCE, **options, **fields})]
    assert classification.build_processor(arguments, None) == "processor"
    size = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
    assert processor.calls == [(("me/model",), {**SOURCE, **size})]
    classification.build_processor(of_script(classification, **named), None)
    assert processor.calls[1][1] == SOURCE


def test_a_new_processor_is_as_large_as_its_model():
    arguments = of_script(classification, model_type="convnext", image_size=None)
    for fields, side in (({"image_size": 96}, 96), ({}, 224)):
        config = SimpleNamespace(model_type="convnext", **fields)
        processor = classification.build_processor(arguments, SimpleNamespace(config=config))
        assert dict(processor.size) == {"shortest_edge": side}
        assert dict(processor.crop_size) == {"height": side, "width": side}
        assert list(processor.image_std) == list(InternImageImageProcessorPil.image_std)


def test_an_evaluated_model_is_of_its_revision_and_type(monkeypatch):
    config, model, processor = Noted(tiny_config()), Noted("model"), Noted("processor")
    monkeypatch.setattr(auto, "load_config", config)
    monkeypatch.setattr(evaluate_checkpoint, "AutoModelForImageClassification", model)
    monkeypatch.setattr(evaluate_checkpoint, "AutoImageProcessor", processor)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)):
        options = evaluate_checkpoint.EvaluationArguments(
            model="me/model", model_revision="v2", trust_remote_code=True, dtype=name
        )
        assert evaluate_checkpoint.load_model(options) == ("model", "processor")
        assert model.calls[-1] == (("me/model",), {**SOURCE, "dtype": dtype})
    assert config.calls[0] == processor.calls[0] == (("me/model",), SOURCE)


def classifier_options(monkeypatch, *, multi_label=False, **run):
    noted = Noted("trainer")
    monkeypatch.setattr(classification, "trainer_with_data", noted)
    arguments = SimpleNamespace(run=classification.RunArguments(**run), augmentation="augmentation")
    data = SimpleNamespace(label_names=list("abcdefg"), multi_label=multi_label, class_weights=lambda: "weights")
    processor = InternImageImageProcessorPil(crop_size={"height": 32, "width": 64}, image_mean=[0.1, 0.2, 0.3])
    assert classification.build_trainer(arguments, data, "model", processor) == "trainer"
    given, options = noted.calls[0]
    assert given[:5] == (classification.ClassificationTrainer, arguments, data, "model", processor)
    assert options["data_collator"] is classification.collate
    assert options["compute_metrics"].classes == 7
    return given[5](), options


def test_what_a_classifiers_trainer_is_given(monkeypatch):
    monkeypatch.setattr(classification, "Augmentation", lambda *arguments: arguments)
    augmentation, options = classifier_options(monkeypatch)
    std = list(InternImageImageProcessorPil.image_std)
    assert augmentation == ((32, 64), [0.1, 0.2, 0.3], std, "augmentation")
    assert (options["callbacks"], options["class_weights"]) == ([], None)
    assert options["preprocess_logits_for_metrics"] is keep_best
    assert not options["compute_metrics"].multi_label
    _, options = classifier_options(monkeypatch, multi_label=True, early_stopping_patience=3, class_weighting=True)
    (callback,) = options["callbacks"]
    assert isinstance(callback, EarlyStoppingCallback)
    assert callback.early_stopping_patience == 3
    assert options["class_weights"] == "weights"
    assert options["preprocess_logits_for_metrics"] is keep_scores
    assert options["compute_metrics"].multi_label


def adapted(multi_label=False, validation="rows", streaming=False, patience=None, **training):
    values = {"metric_for_best_model": "accuracy", "do_train": True, "max_steps": -1}
    training = SimpleNamespace(**values | {"eval_strategy": "steps", "save_strategy": "steps"} | training)
    arguments = SimpleNamespace(
        training=training,
        data=SimpleNamespace(streaming=streaming),
        run=SimpleNamespace(early_stopping_patience=patience),
    )
    data = SimpleNamespace(multi_label=multi_label, validation=validation)
    classification.apply_data_settings(arguments, data)
    return training.metric_for_best_model


def test_settings_of_a_classifier_fit_its_data():
    assert adapted() == "accuracy"
    assert adapted(multi_label=True) == adapted(multi_label=True, do_train=False) == "mean_average_precision"
    assert adapted(multi_label=True, metric_for_best_model="f1") == "f1"
    adapted(streaming=True, max_steps=1)
    adapted(streaming=True, do_train=False)  # an evaluation reads no stream
    adapted(validation=None)
    adapted(patience=1)
    for options, message in (
        ({"streaming": True}, "A stream has no end that is known"),
        ({"streaming": True, "max_steps": 0}, "A stream has no end that is known"),
        ({"streaming": True, "max_steps": 1, "eval_strategy": "epoch"}, "A stream has no epochs"),
        ({"streaming": True, "max_steps": 1, "save_strategy": "epoch"}, "A stream has no epochs"),
        ({"validation": None, "patience": 1}, "early_stopping_patience needs validation data"),
    ):
        with pytest.raises(UsageError, match=message):
            adapted(**options)


# ---- Segmentation and detection ----


@pytest.mark.parametrize(
    ("script", "config"),
    [
        (segmentation, UperNetConfig(backbone_config=tiny_config(out_features=STAGES))),
        (detection, tiny_dino_config()),
    ],
    ids=["segmentation", "detection"],
)
def test_a_system_is_of_its_revision(script, config, monkeypatch):
    loaded, model = Noted(config), torch.nn.Linear(1, 1)
    info = {"mismatched_keys": [("head.weight", (1, 1), (2, 1)), ("head.bias", (1,), (2,))], "missing_keys": set()}
    chosen = Noted((model, info))
    monkeypatch.setattr(auto, "load_config", loaded)
    for name in ("AutoModelForSemanticSegmentation", "AutoModelForObjectDetection"):
        if hasattr(script, name):
            monkeypatch.setattr(script, name, chosen)
    arguments = script.ModelArguments(model_name_or_path="me/model", model_revision="v2", drop_path_rate=0.25)
    assert script.build_model(arguments, Data()) is model
    assert loaded.calls == [(("me/model",), {"revision": "v2"})]
    options = {"revision": "v2", "config": config, "ignore_mismatched_sizes": True, "output_loading_info": True}
    assert chosen.calls == [(("me/model",), options)]
    assert (config.id2label, config.backbone_config.drop_path_rate) == ({0: "cat", 1: "dog"}, 0.25)
    assert model.new_modules == ["head"]


@pytest.mark.parametrize(("script", "head"), [(segmentation, "mask2former"), (detection, "detr")])
def test_a_backbone_is_of_its_revision(script, head, monkeypatch):
    noted = Noted("model")
    monkeypatch.setattr(heads, "from_backbone", noted)
    arguments = script.ModelArguments(
        backbone="me/backbone", head=head, model_revision="v2", drop_path_rate=0.0, head_overrides='{"num_queries": 7}'
    )
    assert arguments.base_model == "me/backbone"
    assert script.build_model(arguments, Data()) == "model"
    labels = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    options = {"backbone_fields": {"drop_path_rate": 0.0}, "revision": "v2", "num_queries": 7, **labels}
    assert noted.calls == [((head, "me/backbone"), options)]


def test_dinos_backbone_is_of_its_revision(monkeypatch):
    config, loaded, built = Noted(tiny_config()), Noted("loaded"), Noted("built")
    monkeypatch.setattr(auto, "load_config", config)
    monkeypatch.setattr(heads, "load_backbone", loaded)
    monkeypatch.setattr(detection, "AutoModelForObjectDetection", built)
    arguments = detection.ModelArguments(backbone="me/backbone", model_revision="v2")
    assert detection.build_model(arguments, Data()) == "loaded"
    assert config.calls == [(("me/backbone",), {"revision": "v2"})]
    assert loaded.calls == [(("built", "me/backbone"), {"revision": "v2"})]
    assert built.calls[0][0][0].backbone_config.out_features == STAGES[1:]
    config.result = UperNetConfig(backbone_config=tiny_config(out_features=STAGES))
    with pytest.raises(UsageError, match="The backbone is of type 'upernet', expected an InternImage"):
        detection.build_model(arguments, Data())


@pytest.mark.parametrize("fields", [{}, {"out_features": STAGES}])
def test_dino_sees_the_last_three_stages_unless_told(fields):
    config = detection.dino_config(tiny_config(num_labels=9, dtype="float16"), fields, {"num_queries": 7})
    assert config.num_queries == 7
    assert config.backbone_config.out_features == fields.get("out_features", STAGES[1:])
    assert config.backbone_config.dtype is None


@pytest.mark.parametrize("script", [segmentation, detection], ids=["segmentation", "detection"])
def test_processors_of_systems_are_of_their_revision(script, monkeypatch):
    processor = Noted(InternImageSegmentationImageProcessor(size_divisor=8))
    monkeypatch.setattr(script, "AutoImageProcessor", processor)
    script.build_processor(of_script(script, model_name_or_path="me/model", model_revision="v2"), None)
    assert processor.calls == [(("me/model",), {"revision": "v2"})]


SIZED = {"size": {"shortest_edge": 100, "longest_edge": 300}, "size_divisor": 8, "image_mean": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize(
    ("loaded", "options", "expected"),
    [
        (None, {}, (48, 192, 32)),  # of the crop's short side
        (None, {"shortest_edge": 60}, (60, 240, 32)),
        (None, {"shortest_edge": 60, "longest_edge": 70, "size_divisor": 4}, (60, 70, 4)),
        (InternImageSegmentationImageProcessor(**SIZED), {}, (100, 300, 8)),
        (InternImageSegmentationImageProcessor(**SIZED), {"longest_edge": 200}, (100, 200, 8)),
        (InternImageSegmentationImageProcessor(**SIZED), {"shortest_edge": 60}, (60, 240, 8)),
        (InternImageSegmentationImageProcessor(**SIZED), {"size_divisor": 1}, (100, 300, 1)),
        (InternImageImageProcessorPil(image_mean=[0.1, 0.2, 0.3]), {}, (48, 192, 32)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("reduce_labels", [True, False])
def test_sizes_of_a_segmenters_images(loaded, options, expected, reduce_labels, monkeypatch):
    monkeypatch.setattr(segmentation, "AutoImageProcessor", Noted(loaded))
    name = {} if loaded is None else {"model_name_or_path": "me/model"}
    arguments = of_script(segmentation, **options, **name)
    arguments.data.reduce_labels = reduce_labels
    processor = segmentation.build_processor(arguments, None)
    size = dict(processor.size)
    assert (size["shortest_edge"], size["longest_edge"], processor.size_divisor) == expected
    mean = InternImageSegmentationImageProcessor.image_mean if loaded is None else [0.1, 0.2, 0.3]
    assert list(processor.image_mean) == list(mean)
    assert processor.do_reduce_labels is reduce_labels


def test_what_the_trainers_of_systems_are_given(monkeypatch):
    processor = SimpleNamespace(size={"shortest_edge": 8})
    for script in (segmentation, detection):
        noted = Noted("trainer")
        monkeypatch.setattr(script, "trainer_with_data", noted)
        monkeypatch.setattr(script, "checkpoint_backbone", Noted(None))
        training = SimpleNamespace(world_size=1, device=torch.device("cpu"))
        arguments = SimpleNamespace(training=training, augmentation="augmentation")
        data = SimpleNamespace(label_names=["a", "b"], validation=None)
        assert script.build_trainer(arguments, data, "model", processor) == "trainer"
        given, options = noted.calls[0]
        assert given[1:5] == (arguments, data, "model", processor)
        assert options["data_collator"] is script.collate
        assert script.checkpoint_backbone.calls == [(("model", training), {})]
        if script is detection:
            assert options["compute_metrics"] is None
        else:
            assert options["compute_metrics"].metric.num_labels == 2


@pytest.mark.parametrize("values", [{"model_name_or_path": "a", "backbone": "b"}, {"backbone": "a", "size": "t"}])
def test_one_source_of_a_model(values):
    with pytest.raises(ValueError, match="{} and {} are both set; choose one of them".format(*values)):
        segmentation.ModelArguments(**values)
    assert segmentation.ModelArguments(size="t").base_model is None
    assert segmentation.ModelArguments(model_name_or_path="a").base_model == "a"
    assert segmentation.ModelArguments().overrides(["a"]) == ({}, {"id2label": {0: "a"}, "label2id": {"a": 0}})
    both = segmentation.ModelArguments(config_overrides='{"drop_path_rate": 0.5, "a": 1}', drop_path_rate=0.0)
    assert both.overrides([])[0] == {"drop_path_rate": 0.0, "a": 1}
    assert system_models.SystemModelArguments.trust_remote_code is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"longest_edge": 30}, "longest_edge is 30: set shortest_edge"),
        ({"longest_edge": 30, "shortest_edge": 31}, "longest_edge is 30: set shortest_edge"),
        ({"max_detections": 0}, "max_detections is 0, expected at least 1"),
        ({"longest_edge": 30, "shortest_edge": 30}, None),
        ({"max_detections": 1}, None),
        ({"shortest_edge": 30}, None),
    ],
)
def test_sizes_of_a_detector(options, message):
    if message is None:
        assert vars(detection.ModelArguments(**options)).items() >= options.items()
    else:
        with pytest.raises(ValueError, match=message):
            detection.ModelArguments(**options)


def test_options_of_the_evaluation_at_the_end():
    run = detection.RunArguments(overlays=3, overlay_threshold=0.25)
    assert detection.evaluate_options(SimpleNamespace(run=run)) == {"overlays": 3, "overlay_threshold": 0.25}
    assert segmentation.TASK.evaluate_options(SimpleNamespace(inference="whole")) == {"inference": "whole"}
    assert classification.TASK.evaluate_options(None) == {}
    entry = {"eval_map_small": 1.0, "eval_map_50": 2.0, "loss": 3.0, "eval_mar_1": 4.0}
    assert detection.TASK.curves([entry]) == [{"eval_map_50": 2.0, "loss": 3.0}]
