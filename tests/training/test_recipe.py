# SPDX-License-Identifier: MIT
"""The rules of the original's recipes, checked by numbers: rates by layer, schedules, mixing, augmentation."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support.golden_data import tiny_config
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from hf_internimage import (
    CBInternImageBackbone,
    CBInternImageConfig,
    InternImageConfig,
    InternImageForImageClassification,
)
from hf_internimage.training.classification.augmentation import OPERATIONS, Augmentation, AugmentationArguments
from hf_internimage.training.classification.mixing import MixingArguments, mix
from hf_internimage.training.optimization import (
    cosine_learning_rate,
    cosine_schedule,
    drop_schedule,
    layer_from_the_end,
    layer_from_the_start,
    learning_rate_scale,
    parameter_groups,
    system_parameter_groups,
)
from hf_internimage.training.system_trainer import SystemRecipe

# ---- Learning rate and weight decay by layer ----


def meta_model(size, **kwargs):
    with torch.device("meta"):
        return InternImageForImageClassification(InternImageConfig.from_size(size, **kwargs))


def rates(model, groups):
    """Return name -> (learning rate, weight decay); each parameter has to be in one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = {}
    for group in groups:
        for parameter in group["params"]:
            assert id(parameter) in names
            settings[names.pop(id(parameter))] = (group["lr"], group["weight_decay"])
    assert not names
    return settings


# The first block's ratio as the original's numbering gives it: OpenGVLab/InternImage, classification/optimizer.py.
@pytest.mark.parametrize(("size", "first"), [("l", 0.0225), ("xl", 0.0182), ("h", 0.0057), ("g", 0.0030)])
def test_first_block_ratio(size, first):
    depths = InternImageConfig.from_size(size).depths
    scale = learning_rate_scale("model.levels.0.blocks.0.mlp.fc1.weight", depths, 0.9, 1.0)
    assert scale == pytest.approx(first, abs=5e-5)
    assert scale == pytest.approx(0.9 ** (sum(depths) - 1), rel=1e-12)


def test_rates_of_h():
    model = meta_model("h")
    groups = parameter_groups(model, 2e-5, 0.05, layer_decay=0.9, geometry_scale=0.1)
    settings = rates(model, groups)
    expected = {  # depths 6, 6, 32, 6: fifty blocks
        "model.levels.3.blocks.5.mlp.fc1.weight": (0, 1),
        "model.levels.3.blocks.0.mlp.fc1.weight": (5, 1),
        "model.levels.2.blocks.31.mlp.fc1.weight": (6, 1),
        "model.levels.2.blocks.0.dcn.input_proj.weight": (37, 1),
        "model.levels.2.blocks.0.dcn.offset.weight": (37, 0.1),
        "model.levels.0.blocks.0.mlp.fc1.weight": (49, 1),
        "model.patch_embed.conv1.weight": (49, 1),
        "model.levels.0.downsample.conv.weight": (43, 1),  # as levels.1.blocks.0
        "model.levels.1.downsample.conv.weight": (37, 1),
        "model.levels.3.blocks.5.dcn.center_feature_scale_proj_weight": (0, 0.1),
        "clip_projector.cross_dcn.proj.weight": (0, 1),
        "head.weight": (0, 1),
    }
    for name, (layer, factor) in expected.items():
        assert settings[name][0] == pytest.approx(2e-5 * 0.9**layer * factor, rel=1e-9), name
        assert settings[name][1] == 0.05, name
    # full rate where the original's rule matches nothing
    for name, (rate, _) in settings.items():
        if ".post_norms." in name or name.startswith(("model.levels.3.norm", "fc_norm", "dcnv3_head")):
            assert rate == 2e-5, name
    # the logged rate is that of the head
    assert groups[0]["lr"] == 2e-5


def test_rates_of_t_are_one_without_layer_decay():
    model = meta_model("t")
    groups = parameter_groups(model, 4e-3, 0.05)
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {(4e-3, 0.05), (4e-3, 0.0)}
    assert len(groups) == 2
    rates(model, groups)


@pytest.mark.parametrize("size", ["t", "h"])
def test_no_decay_for_biases_norms_and_layer_scales(size):
    model = meta_model(size, layer_scale=1e-5) if size == "t" else meta_model(size)
    settings = rates(model, parameter_groups(model, 1e-3, 0.05))
    for name, parameter in model.named_parameters():
        free = parameter.dim() == 1 or name.endswith(".bias")
        assert settings[name][1] == (0.0 if free else 0.05), name
    for part in ("bias", "norm", *(["layer_scale"] if size == "t" else [])):
        assert any(part in name and settings[name][1] == 0.0 for name in settings)


def test_layer_numbers_of_the_base_model_and_behind_wrappers():
    depths = [4, 4, 18, 4]
    assert layer_from_the_end("levels.0.blocks.0.norm1.0.weight", depths) == 29
    assert layer_from_the_end("model.levels.2.norm.0.weight", depths) == 3
    assert layer_from_the_end("model.levels.3.norm.0.weight", depths) is None
    assert layer_from_the_end("head.weight", depths) is None
    model = InternImageForImageClassification(tiny_config())
    plain = rates(model, parameter_groups(model, 1.0, 0.0, layer_decay=0.5))
    wrapped = torch.nn.ModuleDict({"module": model})
    wrapped.config = model.config
    under = rates(wrapped, parameter_groups(wrapped, 1.0, 0.0, layer_decay=0.5))
    assert {name.removeprefix("module."): rate for name, rate in under.items()} == plain
    assert len({rate for rate, _ in plain.values()}) == sum(model.config.depths)


def test_groups_refuse():
    model = InternImageForImageClassification(tiny_config())
    with pytest.raises(ValueError, match="layer_decay is 0"):
        parameter_groups(model, 1.0, 0.0, layer_decay=0)
    with pytest.raises(ValueError, match=r"geometry_scale is 1\.5"):
        parameter_groups(model, 1.0, 0.0, geometry_scale=1.5)
    with pytest.raises(ValueError, match=r"Linear leave both at 1"):
        parameter_groups(torch.nn.Linear(2, 2), 1.0, 0.0, layer_decay=0.9)
    model.model.requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(model, 1.0, 0.0)) == len(
        [p for p in model.parameters() if p.requires_grad]
    )


# ---- Schedule ----


def test_schedule_of_t():
    """300 epochs of 312 steps, 20 of them warm-up; rates for 4096 images are 8 times those for 512."""
    steps, warmup = 300 * 312, 20 * 312
    settings = {"base": 4e-3, "steps": steps, "warmup_steps": warmup, "warmup_start": 4e-6, "minimum": 4e-5}
    seen = (0, warmup // 2, warmup, steps // 2, steps, steps + 9)
    at = {step: cosine_learning_rate(step, **settings) for step in seen}
    assert at[0] == 4e-6
    assert at[warmup // 2] == pytest.approx((4e-6 + 4e-3) / 2)
    # the cosine has gone on during the warm-up: 1/15 of it
    assert at[warmup] == pytest.approx(4e-5 + (4e-3 - 4e-5) * (1 + math.cos(math.pi / 15)) / 2)
    assert at[warmup] < 4e-3
    assert at[steps // 2] == pytest.approx((4e-3 + 4e-5) / 2)
    assert at[steps] == at[steps + 9] == pytest.approx(4e-5)


def test_schedule_gives_each_group_its_own_curve():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    optimizer = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(parameters, (1.0, 0.1, 0.0), strict=True)])
    schedule = cosine_schedule(optimizer, steps=10, warmup_steps=2, warmup_start=0.01, minimum=0.001)
    seen = []
    for _ in range(11):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert seen[0] == pytest.approx([0.01, 0.01, 0])  # an absolute start for all groups
    assert seen[1] == pytest.approx([0.505, 0.055, 0])
    for column, base in ((0, 1.0), (1, 0.1)):
        assert seen[6][column] == pytest.approx(0.001 + (base - 0.001) * (1 + math.cos(0.6 * math.pi)) / 2)
    assert seen[10] == pytest.approx([0.001, 0.001, 0])


# ---- Mixing ----


def batch(n=6, side=16, classes=4):
    pixels = torch.arange(n, dtype=torch.float32).reshape(n, 1, 1, 1).expand(n, 3, side, side).contiguous()
    return pixels, torch.nn.functional.one_hot(torch.arange(n) % classes, classes).float()


def test_mixup_mixes_pixels_and_targets_by_one_share():
    pixels, targets = batch()
    mixed, soft = mix(pixels, targets, MixingArguments(mixup_alpha=0.8))
    share = (mixed[0, 0, 0, 0] - 5) / -5  # image 0 with image 5
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * pixels + (1 - share) * pixels.flip(0))
    torch.testing.assert_close(soft, share * targets + (1 - share) * targets.flip(0))
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    assert torch.equal(pixels, batch()[0])


def test_cutmix_pastes_one_rectangle_and_counts_its_area():
    pixels, targets = batch(side=32)
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, soft = mix(pixels, targets, MixingArguments(cutmix_alpha=1.0))
        replaced = mixed[0, 0] == 5
        assert (replaced | (mixed[0, 0] == 0)).all()
        rows, columns = replaced.any(1), replaced.any(0)
        assert torch.equal(replaced, rows[:, None] & columns)
        share = 1 - replaced.float().mean()
        torch.testing.assert_close(soft, share * targets + (1 - share) * targets.flip(0))


def test_mixing_switches():
    pixels, targets = batch()
    assert mix(pixels, targets, MixingArguments())[0] is pixels
    assert mix(pixels, targets, MixingArguments(mixup_alpha=1, mixing_probability=0))[0] is pixels
    kinds = {"cut": 0, "blend": 0}
    for seed in range(200):
        torch.manual_seed(seed)
        mixed, _ = mix(pixels, targets, MixingArguments(mixup_alpha=0.8, cutmix_alpha=1.0))
        kinds["cut" if (mixed[0] == mixed[0].round()).all() else "blend"] += 1
    assert 70 < kinds["cut"] < 130
    torch.manual_seed(3)
    first = mix(pixels, targets, MixingArguments(mixup_alpha=0.8, cutmix_alpha=1.0))[1]
    torch.manual_seed(3)
    assert torch.equal(first, mix(pixels, targets, MixingArguments(mixup_alpha=0.8, cutmix_alpha=1.0))[1])


@pytest.mark.parametrize(("probability", "cutmix_share"), [(0.25, 0.5), (1, 0.1), (0.75, 0.9), (1, 0), (1, 1)])
def test_probabilities_of_mixing(probability, cutmix_share):
    pixels, targets = batch(side=8)
    options = {"mixing_probability": probability, "cutmix_share": cutmix_share}
    arguments = MixingArguments(mixup_alpha=0.8, cutmix_alpha=1.0, **options)
    nothing = blend = 0
    for seed in range(400):
        torch.manual_seed(seed)
        mixed, _ = mix(pixels, targets, arguments)
        nothing += mixed is pixels
        blend += not torch.equal(mixed[0], mixed[0].round())
    assert nothing / 400 == pytest.approx(1 - probability, abs=0.06)
    assert blend / 400 == pytest.approx(probability * (1 - cutmix_share), abs=0.06)


def test_share_has_the_beta_distribution():
    pixels, targets = batch(2, side=1)
    shares = []
    for seed in range(2000):
        torch.manual_seed(seed)
        shares.append(mix(pixels, targets, MixingArguments(mixup_alpha=0.8))[1][0, 0].item())
    shares = np.array(shares)
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)  # of Beta(a, a)


@pytest.mark.parametrize(
    "wrong", [{"mixup_alpha": -1}, {"cutmix_alpha": -0.1}, {"mixing_probability": 1.1}, {"cutmix_share": -1}]
)
def test_mixing_refuses(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
        MixingArguments(**wrong)


# ---- Augmentation ----

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def picture(width=97, height=71, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def augmentation(size=(48, 40), **arguments):
    off = {"rand_augment_magnitude": 0, "color_jitter": 0, "erase_probability": 0, "flip_probability": 0}
    return Augmentation(size, MEAN, STD, AugmentationArguments(**{**off, **arguments}))


def test_augmentation_depends_on_the_seed_alone():
    augment = Augmentation((48, 40), MEAN, STD, AugmentationArguments())
    first = augment(picture(), [0, 3, 17])
    np.random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(augment(picture(), [0, 3, 17]), first)
    assert first.shape == (3, 48, 40)
    assert first.dtype == torch.float32
    others = [augment(picture(), [0, 4, 17]), augment(picture(), [1, 3, 17]), augment(picture(), [0, 3, 18])]
    assert not any(torch.equal(first, other) for other in others)


def test_whole_image_is_the_processors_resize():
    """With every variation off and the whole area kept, what remains is a bicubic resize and the normalisation."""
    image = picture(64, 64)
    got = augmentation((32, 32), crop_scale_min=1.0, crop_ratio_max=1.0)(image, 0)
    small = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), np.float32) / 255
    expected = (small - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    torch.testing.assert_close(got, torch.from_numpy(expected).permute(2, 0, 1), rtol=1e-6, atol=1e-6)


def test_crops_keep_to_their_limits():
    gradient = np.zeros((400, 400, 3), np.uint8)
    gradient[..., 0], gradient[..., 1] = np.arange(400)[:, None] * 255 / 399, np.arange(400)[None] * 255 / 399
    image, augment = Image.fromarray(gradient), augmentation((64, 64), crop_scale_min=0.08)
    shares, ratios = [], []
    for seed in range(300):
        pixels = augment(image, seed).numpy() * np.array(STD)[:, None, None] + np.array(MEAN)[:, None, None]
        # from the colours' slope to the part of the image that was kept
        down = (pixels[0, 48].mean() - pixels[0, 16].mean()) / 32 * 64
        across = (pixels[1, :, 48].mean() - pixels[1, :, 16].mean()) / 32 * 64
        shares.append(down * across)
        ratios.append(across / down)
    assert 0.07 < min(shares) < 0.15
    assert 0.85 < max(shares) < 1.02
    assert 0.72 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.38


def test_flip():
    image = picture(64, 64)
    whole = {"crop_scale_min": 1.0, "crop_ratio_max": 1.0}
    straight = augmentation((64, 64), **whole)(image, 0)
    mirrored = augmentation((64, 64), flip_probability=1, **whole)(image, 0)
    assert torch.equal(mirrored, straight.flip(-1))
    augment = augmentation((64, 64), flip_probability=0.5, **whole)
    count = sum(not torch.equal(augment(image, seed), straight) for seed in range(200))
    assert 70 < count < 130


def test_erasing_fills_one_rectangle_with_noise():
    image, whole = picture(64, 64), {"crop_scale_min": 1.0, "crop_ratio_max": 1.0}
    straight = augmentation((64, 64), **whole)(image, 0)
    noise, areas = [], []
    for seed in range(60):
        erased = augmentation((64, 64), erase_probability=1, **whole)(image, seed)
        changed = (erased != straight).any(0)
        rows, columns = changed.any(1), changed.any(0)
        assert torch.equal(changed, rows[:, None] & columns)
        areas.append(changed.float().mean().item())
        noise.append(erased[:, changed].flatten())
    noise = torch.cat(noise)
    assert noise.mean().abs() < 0.02
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert 0.015 < min(areas) < 0.1
    assert 0.2 < max(areas) < 0.36
    augment = augmentation((64, 64), erase_probability=0.25, **whole)
    count = sum(not torch.equal(augment(image, seed), straight) for seed in range(300))
    assert 50 < count < 100


# Results of `rand-m9-mstd0.5-inc1` at strength 9 by timm's definitions, compared pixel by pixel with timm 1.0.
def test_operations_at_strength_nine():
    fill, image = (124, 116, 104), picture()
    gray = Image.new("RGB", (16, 16), (100, 100, 100))
    value = {name: OPERATIONS[name](gray, 0.9, 1.0, fill).getpixel((8, 8))[0] for name in OPERATIONS}
    assert value["Posterize"] == 0  # 1 bit is kept
    assert OPERATIONS["Posterize"](Image.new("RGB", (4, 4), (200,) * 3), 0.9, 1, fill).getpixel((0, 0))[0] == 128
    assert value["Solarize"] == 155  # inverted from 256 - 230 on
    assert value["SolarizeAdd"] == 199  # 99 added below 128
    assert value["Invert"] == 155
    assert value["Brightness"] == 181  # times 1.81
    assert OPERATIONS["Brightness"](gray, 0.9, -1.0, fill).getpixel((8, 8))[0] == 19
    assert OPERATIONS["Brightness"](gray, 1.0, -1.0, fill).getpixel((8, 8))[0] == 10  # never under a tenth
    turned = image.rotate(27, Image.Resampling.BICUBIC, fillcolor=fill)
    assert OPERATIONS["Rotate"](image, 0.9, 1.0, fill).tobytes() == turned.tobytes()
    moved = np.asarray(OPERATIONS["TranslateX"](image, 1.0, -1.0, fill))
    assert (moved[:, :40] == fill).all()  # 0.45 of the width
    assert not (moved[:, 46:] == fill).all()
    sheared = np.asarray(OPERATIONS["ShearY"](image, 1.0, 1.0, fill))
    assert (sheared[-1, -1] == fill).all()
    assert not (sheared[-1, 0] == fill).all()
    assert len(OPERATIONS) == 15


def test_rand_augment_applies_half_of_two_operations():
    image = picture(32, 32)
    augment = augmentation(rand_augment_magnitude=9, rand_augment_std=0.5)
    unchanged = sum(
        augment.rand_augment(image, np.random.default_rng(seed)).tobytes() == image.tobytes() for seed in range(400)
    )
    assert 70 < unchanged < 140  # (1/2)^2, and a few operations that change nothing


def test_jitter_is_used_without_rand_augment_only():
    image, whole = picture(64, 64), {"crop_scale_min": 1.0, "crop_ratio_max": 1.0}
    straight = augmentation((64, 64), **whole)(image, 0)
    jittered = augmentation((64, 64), color_jitter=0.4, **whole)(image, 0)
    assert not torch.equal(jittered, straight)
    both = augmentation((64, 64), color_jitter=0.4, rand_augment_magnitude=9, rand_augment_operations=0, **whole)
    assert torch.equal(both(image, 0), straight)


def test_jitter_is_as_strong_as_it_says():
    """Grey has no saturation and no contrast: what is left is the brightness."""
    grey = Image.new("RGB", (2, 2), (100, 100, 100))
    augment = augmentation(color_jitter=0.4)
    values = [augment.jitter(grey, np.random.default_rng(seed)).getpixel((0, 0))[0] for seed in range(300)]
    assert 59 <= min(values) < 63
    assert 137 < max(values) <= 141
    assert np.mean(values) == pytest.approx(100, abs=4)


@pytest.mark.parametrize(
    ("magnitude", "std", "mean", "spread"),
    [(9, 0.5, 0.9, 0.05), (5, 0, 0.5, 0), (10, 9, None, None), (1, 9, None, None)],
)
def test_operations_are_as_strong_as_asked_for(magnitude, std, mean, spread, monkeypatch):
    """In steps of a tenth, from 0 to 1, with either sign; every operation has its turn."""
    drawn = []

    def note(name):
        return lambda image, strength, sign, fill: drawn.append((name, strength, sign, fill)) or image

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, note(name))
    augment = augmentation(rand_augment_magnitude=magnitude, rand_augment_std=std)
    for seed in range(400):
        augment.rand_augment(picture(8, 8), np.random.default_rng(seed))
    names, strengths, signs, fills = zip(*drawn, strict=True)
    assert set(names) == set(OPERATIONS)
    assert set(fills) == {(124, 116, 104)}
    assert np.mean(signs) == pytest.approx(0, abs=0.15)
    if mean is None:
        assert (min(strengths), max(strengths)) == (0, 1)
    else:
        assert np.mean(strengths) == pytest.approx(mean, abs=0.01)
        assert np.std(strengths) == pytest.approx(spread, abs=0.01)


def test_rectangles_reach_every_border():
    """Erased ones lie wherever they fit; those of CutMix have their middle anywhere."""
    erased = np.zeros((6, 9), bool)
    augment = augmentation()
    for seed in range(300):
        pixels = np.full((3, 6, 9), np.nan, np.float32)
        augment.erase(pixels, np.random.default_rng(seed))
        erased |= ~np.isnan(pixels).any(0)
    assert erased.all()
    pasted = torch.zeros(6, 9, dtype=torch.bool)
    images = torch.stack([torch.zeros(3, 6, 9), torch.ones(3, 6, 9)])
    for seed in range(300):
        torch.manual_seed(seed)
        mixed, _ = mix(images, torch.eye(2), MixingArguments(cutmix_alpha=1.0))
        whole = bool((mixed[0] == 1).all())
        pasted |= (mixed[0, 0] == 1) & (not whole)
    assert pasted.all()


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (8, 8)])
def test_odd_images(size):
    for seed in range(20):
        pixels = Augmentation((32, 32), MEAN, STD, AugmentationArguments())(Image.new("RGB", size, "red"), seed)
        assert pixels.shape == (3, 32, 32)
        assert pixels.isfinite().all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_scale_min": 1.5},
        {"flip_probability": -0.1},
        {"erase_probability": 2},
        {"rand_augment_magnitude": 11},
        {"color_jitter": -1},
        {"crop_ratio_max": 0.5},
    ],
)
def test_augmentation_refuses(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
        AugmentationArguments(**wrong)


# ---- Segmentation and detection ----


def test_layers_are_counted_from_the_start_as_in_segmentation():
    depths = [2, 1, 3, 2]
    place = {
        "patch_embed.conv1.weight": 0,
        "levels.0.blocks.0.norm1.0.weight": 1,
        "levels.0.blocks.1.mlp.fc1.weight": 2,
        "levels.0.norm.0.weight": 3,
        "levels.0.downsample.conv.weight": 3,
        "levels.1.blocks.0.dcn.offset.weight": 3,
        "levels.1.downsample.conv.weight": 4,
        "levels.2.blocks.2.mlp.fc2.bias": 6,
        "levels.2.post_norms.1.0.weight": 5,  # the original counts it like a block
        "levels.2.downsample.conv.weight": 7,
        "levels.3.blocks.1.mlp.fc1.weight": 8,
        "levels.3.norm.0.weight": 7,
        "decode_head.classifier.weight": None,
    }
    assert {name: layer_from_the_start(name, depths) for name in place} == place


@pytest.fixture
def segmenter():
    torch.manual_seed(0)
    backbone = tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"])
    return UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone, hidden_size=8, auxiliary_channels=8, num_labels=3)
    )


def test_system_groups_have_the_rates_of_the_original(segmenter):
    groups = system_parameter_groups(segmenter, 1.0, 0.05, layer_decay=0.5, backbone_scale=0.1)
    settings = rates(segmenter, groups)
    depths = segmenter.config.backbone_config.depths
    expected = {
        "decode_head.classifier.weight": (1.0, 0.05),
        "decode_head.psp_modules.0.1.batch_norm.weight": (1.0, 0.0),
        "backbone.patch_embed.conv1.weight": (0.1 * 0.5 ** (sum(depths) + 1), 0.05),
        f"backbone.levels.3.blocks.{depths[-1] - 1}.mlp.fc1.weight": (0.1 * 0.5, 0.05),
        f"backbone.levels.3.blocks.{depths[-1] - 1}.mlp.fc1.bias": (0.1 * 0.5, 0.0),
    }
    assert {name: settings[name] for name in expected} == {name: pytest.approx(pair) for name, pair in expected.items()}


def test_both_parts_of_a_composite_backbone_have_rates_by_layer():
    torch.manual_seed(0)
    backbone = CBInternImageBackbone(CBInternImageConfig(channels=16, depths=[1, 2, 1, 1], groups=[1, 2, 4, 8]))
    settings = rates(backbone, system_parameter_groups(backbone, 1.0, 0.0, layer_decay=0.5))
    for part in (0, 1):
        assert settings[f"cb_modules.{part}.levels.1.blocks.1.mlp.fc1.weight"][0] == 0.5 ** (5 + 1 - 3)
    assert settings["cb_linears.0.1.weight"][0] == settings["cb_modules.1.gamma0"][0] == 1.0


def test_system_groups_without_an_internimage_have_one_rate():
    linear = torch.nn.Linear(2, 2)
    assert {group["lr"] for group in system_parameter_groups(linear, 1.0, 0.1)} == {1.0}
    with pytest.raises(ValueError, match=r"layer_decay=0\.9 .* InternImage backbone, which Linear does not have"):
        system_parameter_groups(linear, 1.0, 0.1, layer_decay=0.9)
    with pytest.raises(ValueError, match="sampling_scale is 0"):
        system_parameter_groups(linear, 1.0, 0.1, sampling_scale=0)


def test_sampling_points_of_deformable_attention_have_a_rate_of_their_own():
    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sampling_offsets = torch.nn.Linear(2, 2)
            self.value_proj = torch.nn.Linear(2, 2)

    model = Detector()
    settings = rates(model, system_parameter_groups(model, 1.0, 0.0, sampling_scale=0.001))
    assert settings["sampling_offsets.weight"][0] == 0.001
    assert settings["value_proj.weight"][0] == 1.0


def test_drop_schedule_is_mmcv_s():
    def values(**arguments):
        optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 2.0}], lr=2.0)
        schedule = drop_schedule(optimizer, **arguments)
        learning_rates = []
        for _ in range(arguments["steps"] + 1):
            learning_rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return learning_rates

    assert values(steps=4, power=1.0) == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0])
    # regular rate x (1 - (1 - step / warm-up) (1 - ratio))
    warm = values(steps=10, power=1.0, warmup_steps=4, warmup_start=0.2)
    assert warm[:5] == pytest.approx([2.0 * (1 - s / 10) * (1 - (1 - s / 4) * 0.8) for s in range(5)])
    assert values(steps=12, drops=[8 / 12, 11 / 12]) == pytest.approx([2.0] * 8 + [0.2] * 3 + [0.02] * 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr_drops": [1.5]}, "lr_drops is"),
        ({"warmup_start_ratio": 2}, "warmup_start_ratio is 2"),
        ({"polynomial_power": -1}, "polynomial_power is -1"),
    ],
)
def test_impossible_system_recipes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SystemRecipe(**wrong)


def test_one_drop_may_be_a_number():
    assert SystemRecipe(lr_drops=0.9).lr_drops == [0.9]


def test_a_random_crop_may_be_the_whole_image(monkeypatch):
    """The middle is taken only if no part drawn fits."""
    monkeypatch.setattr(ImageOps, "fit", lambda *args: pytest.fail("no part was drawn that fits"))
    arguments = AugmentationArguments(crop_scale_min=1, crop_ratio_max=1)
    augment = Augmentation((8, 8), [0.5] * 3, [0.5] * 3, arguments)
    assert augment.crop(Image.new("RGB", (16, 16)), np.random.default_rng(0)).size == (8, 8)


@pytest.mark.parametrize("size", [(90, 4), (4, 90)], ids=["wide", "high"])
def test_where_no_random_crop_fits_the_middle_is_taken(size):
    """No part of the whole area has a ratio of at most 4 / 3: the largest one in the middle is resized."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    arguments = AugmentationArguments(crop_scale_min=1)
    augment = Augmentation((8, 8), [0.5] * 3, [0.5] * 3, arguments)
    middle = (43, 0, 47, 4) if size[0] > 4 else (0, 43, 4, 47)
    expected = Image.fromarray(noise).resize((8, 8), Image.Resampling.BICUBIC, box=middle)
    for seed in range(4):
        assert augment.crop(Image.fromarray(noise), np.random.default_rng(seed)).tobytes() == expected.tobytes()
