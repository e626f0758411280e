# SPDX-License-Identifier: MIT
"""Conversion of UperNet files: the original's results, and released files of every size."""

from functools import cache

import pytest
import torch
from support.golden_heads import document, expected, pixel_values, weights
from support.golden_segmenters import STAGES, golden_segmenter, upernet_config
from support.synthetic_checkpoints import released_shapes, state_dict
from torch.testing import assert_close

from hf_internimage import InternImageConfig, conversion
from hf_internimage.checkpoints.systems import SYSTEM_CHECKPOINTS
from hf_internimage.conversion import upernet
from hf_internimage.models.semantic_maps import resize_scores

NAME = "upernet_tiny"
ROWS = [row for row in SYSTEM_CHECKPOINTS if row.system == "upernet"]
ADE20K = [row for row in ROWS if row.dataset == "ADE20K"]


@cache
def tiny_model(dtype):
    return golden_segmenter(NAME, dtype)


@cache
def results(dtype):
    """Return the model's results for the original's images, under the names of the golden files."""
    model = tiny_model(dtype)
    with torch.no_grad():
        images = pixel_values(NAME, dtype=dtype)
        features = model.backbone(images).feature_maps
        logits = model(images).logits
        return {
            **{f"feature_maps_{index}": feature for index, feature in enumerate(features)},
            "decode_logits": model.decode_head(features),
            "auxiliary_logits": model.auxiliary_head(features),
            "logits": logits,
            "probabilities_50x75": resize_scores(logits, (50, 75)).softmax(dim=1),
        }


@pytest.mark.parametrize(
    ("result", "dtype"),
    [
        *((name, torch.float32) for name in (*(f"feature_maps_{index}" for index in range(4)), "decode_logits")),
        *((name, torch.float32) for name in ("auxiliary_logits", "logits", "probabilities_50x75")),
        *((name, torch.float64) for name in ("feature_maps_3", "decode_logits", "auxiliary_logits")),
    ],
    ids=str,
)
def test_equals_the_original(result, dtype):
    original, atol = expected(NAME, result, dtype)
    assert_close(results(dtype)[result], original, rtol=0, atol=atol)


def test_number_of_parameters_is_the_originals():
    assert tiny_model(torch.float32).num_parameters() == document(NAME)["num_parameters"]


@pytest.mark.parametrize("row", ADE20K, ids=lambda row: row.size)
def test_released_files(row):
    shapes = released_shapes(row)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = upernet.guess_config(shapes)
    with torch.device("meta"):
        model = upernet.build_model(config)
    converted = upernet.convert({f"module.{name}": tensor for name, tensor in tensors.items()}, config)
    assert converted.dropped == {}
    conversion.check_tensors(conversion.shapes_of(converted.tensors), conversion.shapes_of(model.state_dict()))
    assert model.num_parameters() == row.parameters
    released = InternImageConfig.from_size(row.size)
    scaled = config.backbone_config.layer_scale is not None
    assert scaled == (row.size != "h")
    assert (config.hidden_size, config.auxiliary_channels, config.num_labels) == (512, 256, 150)
    for field in ("channels", "depths", "groups", "offset_scale", "post_norm", "res_post_norm", "dw_kernel_size"):
        assert getattr(config.backbone_config, field) == getattr(released, field), field
    assert config.backbone_config.out_features == STAGES
    assert not config.backbone_config.use_clip_projector


def test_parameters_of_the_paper():
    millions = {row.size: round(row.parameters / 1e6) for row in ADE20K}
    assert millions == {"t": 59, "s": 80, "b": 128, "l": 256, "xl": 368, "h": 1120}


def test_without_auxiliary_head():
    shapes = {name: shape for name, shape in released_shapes(ADE20K[0]).items() if not name.startswith("auxiliary")}
    config = upernet.guess_config(shapes)
    assert not config.use_auxiliary_head
    with torch.device("meta"):
        expected_shapes = conversion.shapes_of(upernet.build_model(config).state_dict())
    conversion.check_tensors(
        conversion.shapes_of(upernet.convert(state_dict(shapes, expanded=True), config).tensors), expected_shapes
    )


def test_kept_labels_are_the_first_of_both_heads():
    kept = upernet.keep_labels(weights(NAME), 4)
    for head in ("decode_head", "auxiliary_head"):
        for name in (f"{head}.conv_seg.weight", f"{head}.conv_seg.bias"):
            assert torch.equal(kept[name], weights(NAME)[name][:4])
    same = kept.keys() - {
        f"{head}_head.conv_seg.{part}" for head in ("decode", "auxiliary") for part in ("weight", "bias")
    }
    assert len(same) == len(kept) - 4
    assert all(kept[name] is weights(NAME)[name] for name in same)
    for count in (0, 10):
        with pytest.raises(ValueError, match=r"conv_seg\.weight has 9 classes, .* choose 1 to 9"):
            upernet.keep_labels(weights(NAME), count)
    with pytest.raises(ValueError, match=r"no decode_head\.conv_seg"):
        upernet.keep_labels({"backbone.x": torch.zeros(2)}, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: {**names, "decode_head.surprise.weight": (3,)}, r"1 tensors have names .*surprise"),
        (lambda names: {**names, "backbone.head.weight": (3, 3)}, r"1 tensors have names .*backbone\.head\.weight"),
        (lambda names: {**names, "module.decode_head.conv_seg.bias": (9,)}, "both mean"),
    ],
)
def test_every_name_is_accounted_for(change, message):
    with pytest.raises(ValueError, match=message):
        upernet.convert(state_dict(change(document(NAME)["keys"]), expanded=True), upernet_config())


def test_copies_of_an_ema_hook_are_dropped_by_name():
    copies = {"ema_decode_head_conv_seg_bias": torch.ones(9)}
    converted = upernet.convert({**weights(NAME), **copies}, upernet_config())
    assert list(converted.dropped) == list(copies)
    assert "EMA hook" in converted.dropped["ema_decode_head_conv_seg_bias"]
    assert torch.equal(converted.tensors["decode_head.classifier.bias"], weights(NAME)["decode_head.conv_seg.bias"])


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("decode_head.psp_modules.3", "pools at 3 scales"),
        ("decode_head.conv_seg", r"decode_head\.conv_seg\.weight is missing"),
        ("backbone.patch_embed", "have no InternImage"),
        ("backbone.levels.2.blocks.17", r"depths=\[4, 4, 17, 4\] are those of no released size"),
    ],
)
def test_incomplete_files_have_no_configuration(without, message):
    shapes = {name: shape for name, shape in released_shapes(ADE20K[0]).items() if not name.startswith(without)}
    with pytest.raises(ValueError, match=message):
        upernet.guess_config(shapes)
