# SPDX-License-Identifier: MIT
"""The DINO detector: the original's numbers, training, precision, shapes, saving and what transformers' users call."""

import json
import math
import textwrap

import pytest
import torch
from PIL import Image
from support.golden_data import awaken, tiny_config
from support.golden_detectors import (
    STAGES,
    golden_dino,
    golden_images,
    objects,
    tiny_composite_config,
    tiny_dino,
    tiny_dino_config,
)
from support.golden_heads import document, expected, wanted
from support.half_precision import assert_as_precise_as_its_dtype
from support.island import DETECTOR_ISLAND, MODELS_FOLDER
from support.loading import WITHOUT_THE_PACKAGE, assert_loaded_fully, run_python
from support.quantization import quantize_linear_layers
from torch.testing import assert_close
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    DeformableDetrImageProcessorPil,
    ResNetConfig,
    pipeline,
)
from transformers.models.deformable_detr.modeling_deformable_detr import inverse_sigmoid
from transformers.utils import is_torchvision_available

from hf_internimage import (
    InternImageBackbone,
    InternImageConfig,
    InternImageDetectionImageProcessor,
    InternImageDinoConfig,
    InternImageDinoForObjectDetection,
)
from hf_internimage.hub import repository as hub
from hf_internimage.models.modeling_internimage_dino import InternImageDinoSampling

GOLDEN = "dino_tiny"


def images(height=96, width=128, dtype=torch.float32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_part_is_the_originals(dtype):
    model = golden_dino(dtype)
    pixels, mask = golden_images(dtype)
    with torch.no_grad():
        outputs = model(pixels, mask, labels=objects(dtype))
        features = model.backbone(pixels).feature_maps
        levels = model._feature_levels(pixels)
    got = {
        **{f"feature_maps_{index}": states for index, states in enumerate(features)},
        **{f"neck_{index}": states for index, states in enumerate(levels)},
        **{
            f"layer_{index}_{name}": x
            for index, layer in enumerate(outputs.auxiliary_outputs)
            for name, x in layer.items()
        },
        "encoder_last_hidden_state": outputs.encoder_last_hidden_state,
        "encoder_topk_logits": outputs.encoder_topk_logits,
        "encoder_topk_boxes": outputs.encoder_topk_boxes,
        "logits": outputs.logits,
        "pred_boxes": outputs.pred_boxes,
    }
    assert torch.equal(outputs.encoder_topk_indices, wanted(GOLDEN)["encoder_topk_indices"])
    compared = 0
    for name, tensor in got.items():
        if dtype == torch.float32 or f"float64/{name}" in wanted(GOLDEN):
            want, atol = expected(GOLDEN, name, dtype)
            assert_close(tensor, want, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
            compared += 1
    assert compared == (14 if dtype == torch.float32 else 3)


def test_results_are_the_originals():
    """Scores, classes and boxes in pixels, of the resized image and of the original one."""
    pixels, mask = golden_images()
    with torch.no_grad():
        outputs = golden_dino()(pixels, mask)
    processor, described = InternImageDetectionImageProcessor(), document(GOLDEN)["images"]
    for boxes, sizes in (("boxes", "img_shape"), ("boxes_rescaled", "ori_shape")):
        results = processor.post_process_object_detection(outputs, 0.0, [image[sizes] for image in described], top_k=15)
        for index, result in enumerate(results):
            assert torch.equal(result["labels"], wanted(GOLDEN)[f"result_{index}/labels"])
            want, atol = expected(GOLDEN, f"result_{index}/scores")
            assert_close(result["scores"], want, rtol=0, atol=atol)
            want, atol = expected(GOLDEN, f"result_{index}/{boxes}")
            assert_close(result["boxes"], want, rtol=0, atol=atol)


def test_inverse_sigmoid_is_the_originals():
    described = document(GOLDEN)["inverse_sigmoid"]
    assert tiny_dino_config().inverse_sigmoid_eps == described["eps"]
    got = inverse_sigmoid(torch.tensor(described["x"], dtype=torch.float64), described["eps"])
    assert_close(got, torch.tensor(described["y"], dtype=torch.float64), rtol=0, atol=1e-12)


def test_inverse_sigmoid_is_clamped_where_boxes_touch_the_border():
    model = tiny_dino(inverse_sigmoid_eps=0.25).double()
    other = tiny_dino(inverse_sigmoid_eps=1e-3).double()
    with torch.no_grad():
        clamped, plain = (each(images(dtype=torch.float64)) for each in (model, other))
    assert torch.equal(clamped.encoder_topk_boxes, plain.encoder_topk_boxes)
    assert not torch.allclose(clamped.pred_boxes, plain.pred_boxes)


def test_padding_changes_nothing():
    """A smaller image in a larger batch gives what it gives alone, when padded as its feature maps need."""
    model = tiny_dino().double()
    alone = images(64, 96, torch.float64)[:1]
    batch = torch.zeros(2, 3, 128, 160, dtype=torch.float64)
    batch[0, :, :64, :96], batch[1] = alone[0], images(128, 160, torch.float64)[1]
    mask = torch.ones(2, 128, 160, dtype=torch.int64)
    mask[0] = 0
    mask[0, :64, :96] = 1
    with torch.no_grad():
        # What lies on the padding of feature maps is never looked at, so this holds from the backbone's maps on.
        both, single = model(batch, mask), model(batch[:1], mask[:1])
        blank = model(batch[:1].masked_fill(~mask[:1, None].bool(), 0.0), mask[:1])
    assert_close(both.pred_boxes[:1], single.pred_boxes, rtol=0, atol=1e-12)
    assert_close(both.logits[:1], single.logits, rtol=0, atol=1e-12)
    assert_close(blank.logits, single.logits, rtol=0, atol=1e-12)


def test_encoder_does_not_look_at_padding():
    model = tiny_dino().double()
    pixels, mask = images(dtype=torch.float64), torch.ones(2, 96, 128, dtype=torch.int64)
    mask[:, 64:], mask[:, :, 96:] = 0, 0
    maps = model._feature_levels(pixels)
    noisy = []
    for states in maps:
        inside = torch.nn.functional.interpolate(mask[:, None].double(), size=states.shape[-2:]).bool()
        noisy.append(torch.where(inside, states, states + 5))
    with torch.no_grad():
        for replaced in (maps, noisy):
            model._feature_levels = lambda _, replaced=replaced: replaced
            outputs = model(pixels, mask)
            if replaced is maps:
                first = outputs
    assert_close(outputs.logits, first.logits, rtol=0, atol=1e-12)
    assert_close(outputs.pred_boxes, first.pred_boxes, rtol=0, atol=1e-12)


def test_no_boxes_are_proposed_around_positions_at_the_border():
    """Within one percent of it; the finest level has 60 columns and 4 rows."""
    model, pixels = tiny_dino(), images(32, 480)
    with torch.no_grad():
        levels = model._flatten(model._feature_levels(pixels), None, pixels)
    assert levels.shapes_list[0] == (4, 60)
    finest = levels.proposals[:, :240].unflatten(1, (4, 60)).sigmoid()
    assert (levels.proposals[:, [0, 59, 60, 119]] == torch.inf).all()
    columns = (torch.arange(60) + 0.5) / 60
    assert_close(finest[0, 2, 1:-1, 0], columns[1:-1])
    assert_close(finest[0, :, 30, 1], (torch.arange(4) + 0.5) / 4)
    assert_close(finest[0, 1, 1:-1, 2:], torch.full((58, 2), 0.05))
    assert_close(levels.proposals[0, -1, 2:].sigmoid(), torch.full((2,), 0.4))


@pytest.mark.parametrize("size", [(33, 47), (70, 101), (32, 32)])
def test_images_of_any_size(size):
    with torch.no_grad():
        outputs = tiny_dino()(images(*size))
    positions = outputs.encoder_last_hidden_state.shape[1]
    assert outputs.logits.shape == (2, min(20, positions), 5)
    assert outputs.pred_boxes.isfinite().all()
    assert (outputs.pred_boxes >= 0).all()
    assert (outputs.pred_boxes <= 1).all()


def test_output_forms():
    model = tiny_dino()
    outputs = model(images())
    assert (outputs.loss, outputs.auxiliary_outputs, outputs.decoder_hidden_states) == (None, None, None)
    everything = model(images(), output_hidden_states=True)
    assert len(everything.decoder_hidden_states) == len(everything.encoder_hidden_states) == 3
    assert torch.equal(everything.decoder_hidden_states[-1], everything.last_hidden_state)
    assert torch.equal(everything.encoder_hidden_states[-1], everything.encoder_last_hidden_state)
    assert isinstance(model(images(), return_dict=False), tuple)
    model.config.output_hidden_states = True
    assert len(model(images()).decoder_hidden_states) == 3


def test_training_uses_denoising_and_every_parameter_gets_a_gradient():
    model = tiny_dino(num_denoising=4).train()
    outputs = model(images(), labels=objects(), output_hidden_states=True)
    outputs.loss.backward()
    # without the denoising queries
    assert (outputs.logits.shape, outputs.pred_boxes.shape) == ((2, 20, 5), (2, 20, 4))
    assert {states.shape for states in (outputs.last_hidden_state, *outputs.decoder_hidden_states)} == {(2, 20, 64)}
    ((logits, boxes),) = ((layer["logits"], layer["pred_boxes"]) for layer in outputs.auxiliary_outputs)
    assert (logits.shape, boxes.shape) == ((2, 20, 5), (2, 20, 4))
    assert {"loss_ce", "loss_bbox_0", "loss_giou_enc", "loss_ce_dn"} <= set(outputs.loss_dict)
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert model.label_embeddings.weight.grad.any()
    assert model.backbone.patch_embed.conv1.weight.grad.any()


def test_content_of_denoising_queries_is_zero_where_there_is_padding():
    model = tiny_dino()
    content = model._embed_labels(torch.tensor([[3, 5, 0]]))
    assert torch.equal(content[0, [0, 2]], model.label_embeddings.weight[[3, 0]])
    assert not content[0, 1].any()


@pytest.mark.parametrize("empty", [True, False], ids=["no objects", "switched off"])
def test_training_without_denoising(empty):
    """No matter why there is none, every parameter has a gradient, as distributed training demands."""
    model = tiny_dino(**({} if empty else {"num_denoising": 0})).train()
    nothing = {"class_labels": torch.empty(0, dtype=torch.int64), "boxes": torch.empty(0, 4)}
    outputs = model(images(), labels=[nothing] * 2 if empty else objects())
    outputs.loss.backward()
    assert not any("_dn" in name for name in outputs.loss_dict)
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not model.label_embeddings.weight.grad.any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("encoder_position_temperature", 5.0), ("query_position_temperature", 5.0), ("inverse_sigmoid_eps", 0.3)),
        *(("num_denoising", 2), ("label_noise_ratio", 0.0), ("box_noise_scale", 0.1), ("focal_alpha", 0.9)),
        *(("class_loss_coefficient", 0.1), ("bbox_loss_coefficient", 0.1), ("giou_loss_coefficient", 0.1)),
        *(("dropout", 0.5), ("attention_dropout", 0.5), ("activation_dropout", 0.5)),
    ],
)
def test_every_setting_changes_the_loss(name, value):
    losses = []
    for fields in ({"num_denoising": 8}, {"num_denoising": 8}, {"num_denoising": 8, name: value}):
        torch.manual_seed(0)
        model, pixels = tiny_dino(**fields).train(), images()
        torch.manual_seed(1)
        with torch.no_grad():
            losses.append(model(pixels, labels=objects()).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_a_value_set_later_is_checked_too():
    config = tiny_dino_config()
    config.num_queries = 0
    with pytest.raises(ValueError, match="num_queries is 0, expected an integer of at least 1"):
        InternImageDinoForObjectDetection(config)


def test_attention_that_the_layers_have_not():
    """Masks of denoising queries and weights of the sampling are none of flash and flex attention."""
    assert not InternImageDinoForObjectDetection._supports_flash_attn
    assert not InternImageDinoForObjectDetection._supports_flex_attn
    for name in ("sdpa", "eager"):
        model = InternImageDinoForObjectDetection._from_config(tiny_dino_config(), attn_implementation=name)
        assert model.encoder.config._attn_implementation == name
        assert model.decoder.layers[0].self_attn.config._attn_implementation == name


def test_evaluation_with_labels_is_deterministic():
    model = tiny_dino()
    with torch.no_grad():
        first, second, unlabelled = (model(images(), labels=each) for each in (objects(), objects(), None))
    assert torch.equal(first.loss, second.loss)
    assert not any("_dn" in name for name in first.loss_dict)
    assert torch.equal(first.logits, unlabelled.logits)


def test_matching_queries_do_not_see_denoising_queries():
    """In double precision the predictions of training are those of evaluation: nothing leaks."""
    model = tiny_dino(num_denoising=10).double()
    pixels, labels = images(dtype=torch.float64), objects(torch.float64)
    with torch.no_grad():
        plain, trained = model(pixels), model.train()(pixels, labels=labels)
    assert any("_dn" in name for name in trained.loss_dict)
    assert_close(trained.logits, plain.logits, rtol=0, atol=1e-11)
    assert_close(trained.pred_boxes, plain.pred_boxes, rtol=0, atol=1e-11)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_implementations_agree(attention):
    model = tiny_dino(num_denoising=10).double()
    pixels, labels = images(dtype=torch.float64), objects(torch.float64)
    with torch.no_grad():
        torch.manual_seed(0)
        want = model.train()(pixels, labels=labels)
        other = InternImageDinoForObjectDetection._from_config(model.config, attn_implementation=attention)
        other.load_state_dict(model.state_dict())
        assert other.decoder.layers[0].self_attn.config._attn_implementation == attention
        torch.manual_seed(0)
        got = other.double().train()(pixels, labels=labels)
    assert_close(got.loss, want.loss, rtol=1e-10, atol=0)


def test_look_forward_twice():
    """A layer's boxes are trained through the previous layer's refinement, but not further back."""
    model = tiny_dino(decoder_layers=3).double()
    outputs = model(images(dtype=torch.float64), labels=objects(torch.float64))
    outputs.pred_boxes.square().sum().backward()
    by_layer = [any(p.grad is not None and bool(p.grad.any()) for p in head.parameters()) for head in model.box_heads]
    # layer 0 only moves what layer 1 looks at, which is detached; the last entry is the encoder's
    assert by_layer == [False, True, True, False]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant):
    model = tiny_dino(num_denoising=4).double().train()
    pixels, labels = images(dtype=torch.float64), objects(torch.float64)

    def gradients():
        model.zero_grad()
        torch.manual_seed(5)
        model(pixels, labels=labels).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
    layers = [*model.encoder.layers, *model.decoder.layers, model.backbone.levels[2].blocks[1]]
    assert all(layer.gradient_checkpointing for layer in layers)
    for name, gradient in gradients().items():
        assert_close(gradient, plain[name], rtol=1e-10, atol=1e-13, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_weights_train(dtype):
    model = tiny_dino(num_denoising=4).to(dtype).train()
    outputs = model(images(dtype=dtype), labels=objects())
    outputs.loss.backward()
    assert outputs.pred_boxes.dtype == torch.float32  # geometry stays precise
    assert outputs.loss.isfinite()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_half_precision_keeps_positions(autocast):
    """A step of bfloat16 near 1 is half a percent of the image: many pixels."""
    model = golden_dino()
    pixels, mask = golden_images()
    assert_as_precise_as_its_dtype(
        model,
        lambda each, inputs: each(pixels.bfloat16().to(inputs), mask).encoder_last_hidden_state,
        torch.bfloat16,
        autocast,
    )
    if not autocast:
        model, pixels = model.bfloat16(), pixels.bfloat16()
    types = []
    for module in model.modules():
        if isinstance(module, InternImageDinoSampling):
            module.sampling.register_forward_pre_hook(
                lambda _, inputs: types.extend((inputs[0].dtype, inputs[4].dtype))
            )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = model(pixels, mask)
    assert types == [torch.float32] * 8  # value and locations in two encoder and two decoder layers
    assert got.encoder_topk_boxes.dtype == torch.float32


def test_autocast_trains():
    model = tiny_dino(num_denoising=4).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images(), labels=objects()).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pixel_values is None"),
        ({"pixel_values": torch.zeros(3, 64, 64)}, r"a tensor of shape \(3, 64, 64\)"),
        ({"pixel_values": torch.zeros(1, 4, 64, 64)}, r"expected \(N, 3, height, width\)"),
        (
            {"pixel_values": torch.zeros(1, 3, 64, 64), "pixel_mask": torch.ones(1, 64, 32)},
            r"pixel_mask has shape \(1, 64, 32\), expected \(1, 64, 64\)",
        ),
        (
            {"pixel_values": torch.zeros(1, 3, 64, 64), "labels": objects()},
            "labels has 2 entries, expected one for each of the 1 images",
        ),
    ],
)
def test_arguments_that_cannot_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_dino()(**arguments)


def test_initialisation():
    model = InternImageDinoForObjectDetection(tiny_dino_config(d_model=128))
    prior = -math.log(99)
    for head in model.class_heads:
        assert_close(head.bias, torch.full_like(head.bias, prior))
        assert head.weight.abs().max() <= 1 / math.sqrt(128)
    for head in model.box_heads:
        assert not head.layers[-1].weight.any()
        assert not head.layers[-1].bias.any()
        assert 0.95 / math.sqrt(128) < head.layers[0].weight.abs().max() <= 1 / math.sqrt(128)
    for layers in (model.encoder.layers, model.decoder.layers):
        for layer in layers:
            attention = layer.self_attn if layers is model.encoder.layers else layer.encoder_attn
            assert not attention.sampling_offsets.weight.any()
            assert not attention.attention_weights.weight.any()
            star = attention.sampling_offsets.bias.view(4, 4, 4, 2)  # head, level, point, (x, y)
            assert_close(star[0, 0, :, 0], torch.arange(1.0, 5.0))
            bound = math.sqrt(6 / (128 + 96))
            assert 0.95 * bound < layer.mlp.fc1.weight.abs().max() <= bound
    bound = math.sqrt(6 / (4 * 128))
    query = model.decoder.layers[0].self_attn.q_proj.weight
    assert 0.95 * bound < query.abs().max() <= bound
    for table in (model.query_embeddings.weight, model.label_embeddings.weight, model.level_embeddings.weight):
        assert table.std().item() == pytest.approx(1, rel=0.15)
    assert (model.input_proj[0][1].weight == 1).all()
    assert all(projection[0].bias is None for projection in model.input_proj)


def test_dynamic_quantization_reaches_every_linear_layer():
    with torch.no_grad():
        outputs = quantize_linear_layers(tiny_dino())(images())
    assert outputs.logits.isfinite().all()
    assert outputs.pred_boxes.isfinite().all()


def test_initialisation_sets_every_tensor_also_after_meta():
    with torch.device("meta"):
        model = InternImageDinoForObjectDetection(tiny_dino_config())
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    for module in model.modules():
        module._is_hf_initialized = False
    model.init_weights()
    assert not [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]


@pytest.mark.parametrize("backbone", ["internimage", "cb_internimage", "resnet"])
def test_saving_and_loading_with_each_backbone(backbone, tmp_path):
    configs = {
        "internimage": lambda: tiny_config(out_features=STAGES, layer_scale=0.5),
        "cb_internimage": lambda: tiny_composite_config(round_gamma=False),
        "resnet": lambda: ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1] * 4, layer_type="basic", out_features=STAGES
        ),
    }
    model = tiny_dino(configs[backbone](), num_queries=7)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert_loaded_fully(info)
    assert type(loaded) is InternImageDinoForObjectDetection
    assert type(loaded.config.backbone_config) is type(model.config.backbone_config)
    assert loaded.config.to_dict() == InternImageDinoForObjectDetection.from_pretrained(tmp_path).config.to_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with torch.no_grad():
        assert_close(loaded(images()).logits, model(images()).logits)


def test_new_classes_on_a_trained_detector(tmp_path, caplog):
    tiny_dino().save_pretrained(tmp_path)
    model, info = InternImageDinoForObjectDetection.from_pretrained(
        tmp_path, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {entry[0].split(".")[0] for entry in info["mismatched_keys"]} == {"class_heads", "label_embeddings"}
    assert "Newly initialised are class_heads, label_embeddings; train them before use." in caplog.text
    assert model.class_heads[0].out_features == model.label_embeddings.num_embeddings == 3
    assert_close(model.class_heads[0].bias, torch.full((3,), -math.log(99)))


def test_a_classifiers_weights_fit_the_backbone(tmp_path):
    backbone = awaken(InternImageBackbone(tiny_config(out_features=STAGES)))
    model = tiny_dino()
    model.backbone.load_state_dict(backbone.state_dict(), strict=True)
    with torch.no_grad():
        got = model.backbone(images()).feature_maps
    assert [tuple(states.shape[1:]) for states in got] == [(32, 12, 16), (64, 6, 8), (128, 3, 4)]


def test_device_map_and_shards(tmp_path):
    model = tiny_dino()
    model.save_pretrained(tmp_path, max_shard_size="400KB")
    parts = dict(model.named_children())
    mapped = InternImageDinoForObjectDetection.from_pretrained(
        tmp_path,
        device_map={**dict.fromkeys(parts, "cpu"), "encoder": "disk", "query_embeddings": "disk"},
        offload_folder=tmp_path / "offload",
    ).eval()
    assert mapped.encoder.layers[0].mlp.fc1.weight.device.type == "meta"
    automatic = InternImageDinoForObjectDetection.from_pretrained(tmp_path, device_map="auto").eval()
    with torch.no_grad():
        want = model(images())
        for each in (mapped, automatic):
            assert_close(each(images()).pred_boxes, want.pred_boxes)


@pytest.mark.parametrize("processor", [InternImageDetectionImageProcessor, DeformableDetrImageProcessorPil])
def test_pipeline(processor, tmp_path, caplog):
    model = tiny_dino(id2label={index: f"thing {index}" for index in range(5)})
    model.save_pretrained(tmp_path)
    processor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path)
    detect = pipeline("object-detection", model=str(tmp_path))
    expected = processor.__name__
    if is_torchvision_available():  # transformers then loads its own processors as those of torchvision
        expected = expected.removesuffix("Pil")
    assert type(detect.image_processor).__name__ == expected
    picture = Image.fromarray(torch.randint(0, 256, (60, 100, 3), dtype=torch.uint8).numpy())
    found = detect(picture, threshold=0.0)
    assert found
    assert {entry["label"] for entry in found} <= set(model.config.id2label.values())
    assert all(0 <= entry["box"]["xmin"] <= entry["box"]["xmax"] <= 100 for entry in found)
    assert "not supported" not in caplog.text


def test_auto_classes(tmp_path):
    config = AutoConfig.for_model(**tiny_dino_config().to_dict())
    assert type(config) is InternImageDinoConfig
    assert type(config.backbone_config) is InternImageConfig
    assert type(AutoModelForObjectDetection.from_config(config)) is InternImageDinoForObjectDetection
    assert type(CONFIG_MAPPING["cb_internimage"]().stage_names) is list
    config.save_pretrained(tmp_path)
    InternImageDetectionImageProcessor().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is InternImageDetectionImageProcessor


def test_configuration_defaults():
    config = InternImageDinoConfig()
    assert (config.hidden_size, config.num_attention_heads, config.num_queries) == (256, 8, 900)
    assert config.backbone_config.out_features == STAGES
    assert config.backbone_config.layer_scale == 1.0
    layers = config.deformable_detr_config()
    assert (layers.encoder_ffn_dim, layers.decoder_layers, layers.dropout) == (2048, 6, 0.0)
    assert InternImageDinoConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_the_transformer_gets_every_field():
    """Also those whose defaults are transformers' own."""
    fields = {
        "d_model": 192,
        "num_feature_levels": 5,
        "activation_function": "gelu",
        "num_queries": 7,
        "encoder_layers": 2,
        "encoder_ffn_dim": 100,
        "encoder_attention_heads": 4,
        "encoder_n_points": 3,
        "decoder_layers": 3,
        "decoder_ffn_dim": 200,
        "decoder_attention_heads": 6,
        "decoder_n_points": 2,
        "dropout": 0.1,
        "attention_dropout": 0.2,
        "activation_dropout": 0.3,
    }
    config = InternImageDinoConfig(**fields).deformable_detr_config()
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 48}, "d_model is 48, expected a multiple of 32"),
        ({"d_model": 96, "encoder_attention_heads": 5}, "d_model is 96, expected a multiple of 160"),
        ({"d_model": 96, "decoder_attention_heads": 5}, r"multiple of 160: .* the heads \(8 and 5\)"),
        ({"num_labels": 0}, "num_labels is 0, expected an integer of at least 1"),
        ({"num_queries": 0}, "num_queries is 0, expected an integer of at least 1"),
        ({"encoder_ffn_dim": 10**30}, "encoder_ffn_dim is 10*, expected .* at most 100000"),
        ({"activation_function": "tanhh"}, "activation_function is 'tanhh', expected the name of an activation"),
        ({"activation_function": math.nan}, "activation_function is nan, expected the name of an activation"),
        ({"focal_alpha": b"x"}, "focal_alpha is b'x', expected a finite number"),
        ({"auxiliary_loss": "yes"}, "auxiliary_loss is 'yes', expected True or False"),
        ({"num_denoising": -1}, "num_denoising is -1, expected an integer of at least 0"),
        ({"dropout": 1.5}, "dropout is 1.5, expected a number from 0 to 1"),
        ({"giou_cost": -2}, "giou_cost is -2, expected a finite number of at least 0"),
        ({"inverse_sigmoid_eps": 0.5}, "inverse_sigmoid_eps is 0.5"),
        ({"encoder_position_temperature": 0}, "encoder_position_temperature is 0, expected a finite number above 0"),
        ({"num_feature_levels": 2}, "gives 3 feature maps .stage2, stage3, stage4. for 2 feature levels"),
        ({"backbone_config": {"model_type": "internimage"}}, "gives one feature map .stage4. for 4 feature levels"),
        (
            {"backbone_config": {"model_type": "yolo"}},
            "model_type 'yolo', expected internimage, cb_internimage, flash_internimage or",
        ),
        ({"backbone_config": 3}, "backbone_config is a int, expected a backbone's configuration"),
    ],
)
def test_configurations_that_cannot_work(fields, message):
    with pytest.raises(ValueError, match=message):
        InternImageDinoConfig(**fields)


RATES = ("dropout", "attention_dropout", "activation_dropout", "label_noise_ratio")
WEIGHTS = (
    *("box_noise_scale", "class_cost", "bbox_cost", "giou_cost"),
    *("class_loss_coefficient", "bbox_loss_coefficient", "giou_loss_coefficient"),
)
COUNTS = (
    *("d_model", "num_feature_levels", "num_queries", "num_labels"),
    *(
        f"{part}_{name}"
        for part in ("encoder", "decoder")
        for name in ("layers", "ffn_dim", "attention_heads", "n_points")
    ),
)


@pytest.mark.parametrize(
    ("names", "accepted", "refused", "rule"),
    [
        (COUNTS, [], [0, 100_001], "an integer of at least 1 and at most 100000"),
        (["num_queries", "encoder_ffn_dim"], [1, 100_000], [], ""),
        (["num_denoising"], [0, 100_000], [-1, 100_001], "an integer of at least 0 and at most 100000"),
        (RATES, [0.0, 1.0], [-0.01, 1.01, math.nan], "a number from 0 to 1"),
        (WEIGHTS, [0.0, 1e9], [-0.01, math.inf, math.nan], "a finite number of at least 0"),
        (
            ["encoder_position_temperature", "query_position_temperature"],
            [0.1],
            [0.0, math.inf, math.nan],
            "a finite number above 0",
        ),
        (["inverse_sigmoid_eps"], [1e-9, 0.49], [0.0, 0.5, math.nan], "a number between 0 and 0.5"),
        (["focal_alpha"], [-1.0, 0.0, 2.0], [math.inf, math.nan], "a finite number"),
    ],
    ids=["counts", "large", "denoising", "rates", "weights", "temperatures", "eps", "alpha"],
)
def test_range_of_each_field(names, accepted, refused, rule):
    for name in names:
        for value in accepted:
            assert getattr(InternImageDinoConfig(**{name: value}), name) == value
        for value in refused:
            with pytest.raises(ValueError, match=f"^{name} is {value!r}, expected {rule}"):
                InternImageDinoConfig(**{name: value})


def test_repository_runs_without_the_package(tmp_path):
    """Source files of model, loss and image processor travel, and give the same detections."""
    model = tiny_dino(tiny_composite_config())
    processor = InternImageDetectionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    hub.save_for_hub(model, tmp_path / "repo", image_processor=processor)
    assert {path.name for path in (tmp_path / "repo").glob("*.py")} == DETECTOR_ISLAND
    for file in DETECTOR_ISLAND:
        assert (tmp_path / "repo" / file).read_bytes() == (MODELS_FOLDER / file).read_bytes()
    picture = Image.fromarray(torch.randint(0, 256, (60, 100, 3), dtype=torch.uint8).numpy())
    picture.save(tmp_path / "picture.png")
    hub.save_for_hub(model.backbone, tmp_path / "backbone")
    torch.save(images(), tmp_path / "images.pt")
    printed = run_python(
        WITHOUT_THE_PACKAGE
        + textwrap.dedent(f"""
        import json
        import torch
        from PIL import Image
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, pipeline
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        repo = {str(tmp_path / "repo")!r}
        model = AutoModelForObjectDetection.from_pretrained(repo, trust_remote_code=True).eval()
        processor = AutoImageProcessor.from_pretrained(repo, trust_remote_code=True)
        inputs = processor(Image.open({str(tmp_path / "picture.png")!r}), return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        pipeline("object-detection", model=repo, trust_remote_code=True)
        labels = [{{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}}]
        model.train()(**inputs, labels=labels).loss.backward()
        alone = {str(tmp_path / "backbone")!r}
        reference = AutoConfig.from_pretrained(alone, trust_remote_code=True).auto_map["AutoBackbone"]
        backbone = get_class_from_dynamic_module(reference.split("--")[-1], alone).from_pretrained(alone).eval()
        with torch.no_grad():
            features = backbone(torch.load({str(tmp_path / "images.pt")!r})).feature_maps[-1]
        assert "hf_internimage" not in sys.modules
        found = [outputs.logits, outputs.pred_boxes, features]
        print(json.dumps([type(processor).__name__, *(tensor.tolist() for tensor in found)]))
        """),
        HF_MODULES_CACHE=str(tmp_path / "modules"),
    )
    name, logits, boxes, features = json.loads(printed)
    assert name == "InternImageDetectionImageProcessor"
    with torch.no_grad():
        want = model(**processor(picture, return_tensors="pt"))
        want_features = model.backbone(images()).feature_maps[-1]
    assert_close(torch.tensor(logits), want.logits, rtol=0, atol=2e-5)
    assert_close(torch.tensor(boxes), want.pred_boxes, rtol=0, atol=2e-6)
    assert_close(torch.tensor(features), want_features, rtol=0, atol=2e-5)


def test_repository_with_the_package(tmp_path):
    model = tiny_dino()
    with pytest.raises(ValueError, match="does not say at what size it sees images; give image_processor"):
        hub.save_for_hub(model, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()
    hub.save_for_hub(model, tmp_path / "repo", image_processor=InternImageDetectionImageProcessor(top_k=300))
    config = json.loads((tmp_path / "repo" / "config.json").read_text())
    assert config["auto_map"] == hub.AUTO_MAPS["internimage_dino"]
    assert "object-detection" in (tmp_path / "repo" / "README.md").read_text()
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path / "repo")
    assert type(loaded) is InternImageDinoForObjectDetection
    processor = AutoImageProcessor.from_pretrained(tmp_path / "repo")
    assert type(processor) is InternImageDetectionImageProcessor
    assert processor.top_k == 300
    hub.save_for_hub(loaded, tmp_path / "again", image_processor=processor)
    for path in (tmp_path / "repo").glob("*.*"):
        if path.name != "README.md":
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
