# SPDX-License-Identifier: MIT
"""transformers' own heads on InternImage: all of them, and the functions that build them and load their backbones."""

import json
import re

import pytest
import torch
import transformers
from PIL import Image
from support.golden_data import awaken, golden_model, model_input, tiny_config, write_official_folder
from support.loading import run_python
from support.paths import DOCS
from transformers import BertTokenizer, CLIPTokenizer, pipeline

from hf_internimage import InternImageBackbone, InternImageConfig, InternImageForImageClassification, InternImageModel
from hf_internimage.heads import (
    HEADS,
    UNSUITABLE,
    check_queries,
    find_backbone,
    from_backbone,
    gradient_checkpointing,
    head_config,
    load_backbone,
)
from hf_internimage.models import auto

HEADS_PAGE = DOCS / "heads.md"
STAGES = ["stage1", "stage2", "stage3", "stage4"]
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "cow"}, "label2id": {"cat": 0, "dog": 1, "cow": 2}}
DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 5,
}
HYBRID = {**DETR, "encoder_hidden_dim": 32, "num_denoising": 4}
MASKS = {
    "hidden_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_feedforward_dim": 32,
    "num_attention_heads": 4,
    "dim_feedforward": 32,
    "num_queries": 5,
    "train_num_points": 64,
    "dropout": 0.0,
}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
# Grounding DINO knows BERT's ids of [CLS], [SEP], "." and "?" by heart.
WORDS = {101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 0: "[PAD]", 100: "[UNK]", 1012: ".", 1029: "?", 5: "cat", 6: "dog"}
BERT = {"text_config": {"model_type": "bert", "vocab_size": 1030, **TEXT}, "max_text_len": 16}
CLIP = {
    "model_type": "clip_text_model",
    "vocab_size": 40,
    "max_position_embeddings": 20,
    **TEXT,
    "hidden_size": 48,
    "projection_dim": 48,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# The least each head can be made of.
SMALL = {
    "upernet": {"hidden_size": 16, "auxiliary_channels": 8},
    "maskformer": {"fpn_feature_size": 32, "mask_feature_size": 32, "decoder_config": DETR},
    "mask2former": {**MASKS, "feature_size": 32, "mask_feature_size": 32},
    "oneformer": {
        **MASKS,
        "hidden_dim": 64,
        "conv_dim": 64,
        "mask_dim": 64,
        "num_queries": 6,
        "query_dec_layers": 1,
        "text_encoder_width": 64,
        "text_encoder_num_layers": 1,
        "text_encoder_vocab_size": 300,
        "text_encoder_context_length": 77,
        "text_encoder_n_ctx": 2,
        "is_training": True,
    },
    "detr": DETR,
    "detr_segmentation": {**DETR, "encoder_attention_heads": 8},
    "conditional_detr": DETR,
    "table_transformer": DETR,
    "deformable_detr": DETR,
    "dab_detr": {**{name: value for name, value in DETR.items() if name != "d_model"}, "hidden_size": 32},
    "rt_detr": HYBRID,
    "rt_detr_v2": HYBRID,
    "d_fine": HYBRID,
    "deimv2": HYBRID,
    "grounding_dino": {**DETR, **BERT},
    "mm_grounding_dino": {**DETR, **BERT},
    "omdet_turbo": {
        "text_config": CLIP,
        "text_projection_in_dim": 48,
        "text_projection_out_dim": 48,
        "class_embed_dim": 48,
        "task_encoder_hidden_dim": 32,
        "num_queries": 6,
        "encoder_hidden_dim": 32,
        "decoder_hidden_dim": 32,
        "encoder_dim_feedforward": 32,
        "decoder_dim_feedforward": 32,
        "decoder_num_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_num_heads": 4,
    },
    "vitmatte": {"hidden_size": 64, "convstream_hidden_sizes": [8, 8, 8], "fusion_hidden_sizes": [16, 8, 8, 8]},
}
MASK_HEADS = ("maskformer", "mask2former", "oneformer")
WITHOUT_LOSS = ("omdet_turbo", "vitmatte")
AUTO = {
    "upernet": "AutoModelForSemanticSegmentation",
    "maskformer": "AutoModelForInstanceSegmentation",
    "mask2former": "AutoModelForUniversalSegmentation",
    "oneformer": "AutoModelForUniversalSegmentation",
    "detr_segmentation": "AutoModelForImageSegmentation",
    "grounding_dino": "AutoModelForZeroShotObjectDetection",
    "mm_grounding_dino": "AutoModelForZeroShotObjectDetection",
    "omdet_turbo": "AutoModelForZeroShotObjectDetection",
    "vitmatte": "AutoModelForImageMatting",
}
every_head = pytest.mark.parametrize("name", HEADS)


def build(name, backbone=None, **fields):
    config = head_config(name, backbone or tiny_config(), **{**SMALL[name], **LABELS, **fields})
    return getattr(transformers, HEADS[name].model)(config)


def inputs(name):
    """Two images, and texts for heads that read some."""
    texts = {}
    if "grounding" in name:
        ids = torch.tensor([[101, 5, 1012, 6, 1012, 102]] * 2)
        texts = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    elif name == "oneformer":
        texts = {"task_inputs": torch.randint(1, 300, (2, 77)), "text_inputs": torch.randint(1, 300, (2, 4, 77))}
    elif name == "omdet_turbo":
        classes, tasks = torch.randint(2, 40, (4, 6)), torch.randint(2, 40, (2, 6))
        texts = {
            "classes_input_ids": classes,
            "classes_attention_mask": torch.ones_like(classes),
            "tasks_input_ids": tasks,
            "tasks_attention_mask": torch.ones_like(tasks),
            "classes_structure": torch.tensor([2, 2]),
        }
    return {"pixel_values": torch.randn(2, 4 if name == "vitmatte" else 3, 64, 96), **texts}


def targets(name):
    """Return arguments with which the head's forward returns a loss."""
    if name in WITHOUT_LOSS:
        return {}
    if name == "upernet":
        return {"labels": torch.randint(0, 3, (2, 64, 96))}
    masks = torch.zeros(2, 64, 96)
    masks[0, 8:40, 16:64], masks[1, 30:, :30] = 1, 1
    classes = torch.tensor([0, 1])
    if name in MASK_HEADS:
        return {"mask_labels": [masks, masks], "class_labels": [classes, classes]}
    boxes = torch.tensor([[0.4, 0.4, 0.5, 0.5], [0.2, 0.7, 0.3, 0.5]])
    label = {"class_labels": classes, "boxes": boxes}
    if name == "detr_segmentation":
        label["masks"] = masks
    return {"labels": [dict(label), dict(label)]}


def scores(outputs):
    """The tensors a head is for."""
    names = ("logits", "pred_boxes", "pred_masks", "class_queries_logits", "masks_queries_logits", "alphas")
    found = {
        name: outputs[name] for name in (*names, "decoder_coord_logits", "decoder_class_logits") if name in outputs
    }
    assert found
    return found


def train(model, name):
    """Loss, the gradients of the backbone, and how often a block ran."""
    model.zero_grad()
    if name == "omdet_turbo":  # keeps texts, together with the graph of the backward pass
        model.language_cache_class.__init__(10), model.language_cache_prompt.__init__(10)
    _, backbone = find_backbone(model)
    calls = []
    hook = backbone.levels[0].blocks[0].dcn.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.manual_seed(1)
    outputs = model(**inputs(name), **targets(name))
    loss = outputs.loss if name not in WITHOUT_LOSS else sum(tensor.sum() for tensor in scores(outputs).values())
    loss.backward()
    hook.remove()
    return loss.detach(), {key: parameter.grad for key, parameter in backbone.named_parameters()}, len(calls)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model, before):
    assert model.state_dict().keys() == before.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@every_head
def test_head(name, tmp_path):
    """Forward, loss and backward, gradient checkpointing, saving and loading."""
    model = build(name)
    prefix, backbone = find_backbone(model)
    assert type(backbone) is InternImageBackbone
    assert model.get_submodule(prefix.removesuffix(".")) is backbone
    assert type(model).__name__ == HEADS[name].model

    loss, gradients, calls = train(model.train(), name)
    assert loss.isfinite()
    assert calls == 1
    unused = {key for key, gradient in gradients.items() if gradient is None}
    # matting reads the third stage: the fourth is idle, and so is what leads there
    idle = ("levels.3.", "levels.2.downsample.") if name == "vitmatte" else ()
    assert unused == {key for key in gradients if key.startswith(idle)} if idle else not unused
    stem = gradients["patch_embed.conv1.weight"]
    assert stem.isfinite().all()
    assert stem.abs().max() > 0

    gradient_checkpointing(model)
    again, recomputed, calls = train(model, name)
    assert calls == 2
    assert torch.equal(again, loss)
    for key in gradients.keys() - unused:
        torch.testing.assert_close(recomputed[key], gradients[key], rtol=0, atol=0, msg=key)

    example = inputs(name)
    awaken(backbone)
    with torch.no_grad():
        expected = scores(model.eval()(**example))
    model.save_pretrained(tmp_path)
    auto = getattr(transformers, AUTO.get(name, "AutoModelForObjectDetection"))
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not any(info.values()), info
    assert_unchanged(loaded, model.state_dict())
    for parameter in loaded.parameters():  # away from the file's addresses, with which convolutions sum otherwise
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        got = scores(loaded(**example))
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


@pytest.fixture(scope="module")
def picture():
    return Image.effect_noise((96, 64), 50).convert("RGB")


@pytest.mark.parametrize(
    ("name", "processor"),
    [
        ("detr", "DetrImageProcessorPil"),
        ("conditional_detr", "ConditionalDetrImageProcessorPil"),
        ("table_transformer", "DetrImageProcessorPil"),
        ("deformable_detr", "DeformableDetrImageProcessorPil"),
        ("dab_detr", "ConditionalDetrImageProcessorPil"),
        ("rt_detr", "RTDetrImageProcessorPil"),
        ("rt_detr_v2", "RTDetrImageProcessorPil"),
        ("d_fine", "RTDetrImageProcessorPil"),
        ("deimv2", "RTDetrImageProcessorPil"),
    ],
)
def test_detection_pipeline(name, processor, picture):
    side = (
        {"height": 64, "width": 64} if name in ("rt_detr", "rt_detr_v2", "d_fine", "deimv2") else {"shortest_edge": 64}
    )
    side |= {} if "height" in side else {"longest_edge": 96}
    detect = pipeline(
        "object-detection", model=build(name).eval(), image_processor=getattr(transformers, processor)(size=side)
    )
    found = detect(picture, threshold=0.0)
    assert found
    for entry in found:
        assert entry["label"] in LABELS["label2id"]
        assert 0 < entry["score"] <= 1
        assert -96 < entry["box"]["xmin"] <= entry["box"]["xmax"] < 2 * 96


def clip_tokenizer(folder):
    """A tokenizer that knows the letters."""
    letters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


@pytest.mark.parametrize(
    ("name", "processor", "subtask"),
    [
        ("upernet", "SegformerImageProcessorPil", "semantic"),
        ("maskformer", "MaskFormerImageProcessorPil", "panoptic"),
        ("mask2former", "Mask2FormerImageProcessorPil", "instance"),
        ("oneformer", "OneFormerImageProcessorPil", "semantic"),
        ("detr_segmentation", "DetrImageProcessorPil", "panoptic"),
    ],
)
def test_segmentation_pipeline(name, processor, subtask, picture, tmp_path):
    options, size = {}, {"height": 64, "width": 96}
    if name == "oneformer":
        classes = {str(index): {"name": label, "isthing": 1} for index, label in LABELS["id2label"].items()}
        (tmp_path / "classes.json").write_text(json.dumps(classes))
        options["tokenizer"] = clip_tokenizer(tmp_path)
        size = {"shortest_edge": 64, "longest_edge": 96}
        settings = {"repo_path": str(tmp_path), "class_info_file": "classes.json", "num_text": 4}
    else:
        settings = {}
    model = build(name).eval()
    if name == "oneformer":
        model.config.is_training = model.model.is_training = False
    if name == "detr_segmentation":  # by chance every query says "no object" otherwise
        model.detr.class_labels_classifier.bias.data[-1] = -10
    try:
        image_processor = getattr(transformers, processor)(size=size, **settings)
    except ImportError as error:  # SegFormer's in transformers 5.17 without torchvision
        pytest.skip(str(error).strip())
    segment = pipeline("image-segmentation", model=model, image_processor=image_processor, **options)
    found = segment(picture, subtask=subtask, threshold=0.0, mask_threshold=0.0, overlap_mask_area_threshold=0.0)
    assert found
    for entry in found:
        assert entry["label"] in LABELS["label2id"]
        assert entry["mask"].size == (96, 64)
    assert any(entry["mask"].getextrema()[1] == 255 for entry in found)


@pytest.mark.parametrize("name", ["grounding_dino", "mm_grounding_dino"])
def test_zero_shot_detection_pipeline(name, picture, tmp_path):
    vocabulary = [WORDS.get(index, f"[unused{index}]") for index in range(1030)]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    detect = pipeline(
        "zero-shot-object-detection",
        model=build(name).eval(),
        tokenizer=BertTokenizer(str(tmp_path / "vocab.txt")),
        image_processor=transformers.GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}),
    )
    found = detect(picture, candidate_labels=["cat.", "dog."], threshold=0.0)
    assert {entry["label"] for entry in found} == {"cat.", "dog."}


STEM = "patch_embed.conv1.weight"
T_FIELDS = {"channels": 16, "depths": [1, 1, 2, 1], "groups": [1, 2, 4, 8]}


def classifier(**fields):
    return awaken(InternImageForImageClassification(tiny_config(**fields))).eval()


@pytest.mark.parametrize(
    ("name", "stages", "expected"),
    [
        ("upernet", STAGES, {}),
        ("mask2former", STAGES, {}),
        ("detr", STAGES[3:], {}),
        ("detr_segmentation", STAGES, {}),
        ("deformable_detr", STAGES[1:], {"num_feature_levels": 4}),
        (
            "rt_detr_v2",
            STAGES[1:],
            {
                "encoder_in_channels": [32, 64, 128],
                "feat_strides": [8, 16, 32],
                "num_feature_levels": 3,
                "decoder_in_channels": [256] * 3,
                "encode_proj_layers": [2],
                "decoder_n_levels": 3,
            },
        ),
        (
            "omdet_turbo",
            STAGES[1:],
            {
                "apply_layernorm_after_vision_backbone": False,
                "encoder_in_channels": [32, 64, 128],
                "encoder_projection_indices": [2],
                "vision_features_channels": [256] * 3,
                "num_feature_levels": 3,
            },
        ),
        ("vitmatte", STAGES[2:3], {}),
    ],
)
def test_configuration(name, stages, expected):
    source = tiny_config(id2label={0: "a", 1: "b"}, dtype="bfloat16", drop_path_rate=0.1, out_features=["stem"])
    before = source.to_dict()
    config = head_config(name, source)
    assert source.to_dict() == before
    backbone = config.backbone_config
    assert type(backbone) is InternImageConfig
    assert backbone.out_features == stages
    assert backbone.drop_path_rate == 0.1
    assert backbone.num_channels == (4 if name == "vitmatte" else 3)
    # what belongs to the classifier stays there
    assert backbone.dtype is None
    assert backbone.id2label != source.id2label
    for field, value in expected.items():
        assert getattr(config, field) == value, field


def test_the_users_fields_win():
    config = head_config("rt_detr", tiny_config(), out_features=["stage3", "stage4"], encoder_hidden_dim=64)
    assert config.encoder_in_channels == [64, 128]
    assert config.feat_strides == [16, 32]
    assert config.num_feature_levels == 2
    assert config.encode_proj_layers == [1]
    assert config.decoder_in_channels == [64, 64]
    assert head_config("rt_detr", tiny_config(), encode_proj_layers=[0]).encode_proj_layers == [0]
    assert head_config("deformable_detr", "t", num_feature_levels=2).backbone_config.out_features == STAGES[2:]
    decoder = transformers.DetrConfig(backbone_config=tiny_config(), decoder_layers=3)
    assert head_config("maskformer", "t", decoder_config=decoder).decoder_config.decoder_layers == 3
    assert head_config("maskformer", "t", decoder_config={"decoder_layers": 2}).decoder_config.decoder_layers == 2
    for fields in ({}, {"decoder_config": {"decoder_layers": 2}}):
        assert head_config("maskformer", "t", **fields).decoder_config.backbone_config.model_type == "internimage"
    decoder = {"backbone_config": transformers.ResNetConfig()}
    assert head_config("maskformer", "t", decoder_config=decoder).decoder_config.backbone_config.model_type == "resnet"


@pytest.mark.parametrize("fields", [{"num_feature_levels": 1}, {"num_feature_levels": 2}, {"out_features": ["stage4"]}])
@pytest.mark.parametrize("name", ["deformable_detr", "rt_detr", "rt_detr_v2", "d_fine"])
def test_fewer_levels_run(name, fields):
    model = build(name, **fields).eval()
    with torch.no_grad():
        assert model(**inputs(name)).logits.shape[-1] in (3, 4)


def test_a_head_is_named_in_many_ways():
    for head in (
        *("rt_detr_v2", "RT-DETR-v2", "RTDetrV2Config", "RTDetrV2ForObjectDetection"),
        *(transformers.RTDetrV2Config, transformers.RTDetrV2ForObjectDetection),
    ):
        assert type(head_config(head, "t")) is transformers.RTDetrV2Config
    assert head_config(transformers.DetrConfig, "t").backbone_config.out_features == ["stage4"]
    assert head_config(transformers.DetrForSegmentation, "t").backbone_config.out_features == STAGES


def test_other_numbers_of_stages():
    three = tiny_config(depths=[1, 1, 1], groups=[1, 2, 4])
    assert head_config("vitmatte", three).backbone_config.out_features == ["stage3"]
    with pytest.raises(ValueError, match=r"strides \[4, 8, 16, 32\] .* none of stride 32; give out_features"):
        head_config("upernet", three)
    model = build("upernet", three, out_features=["stage1", "stage2", "stage3"]).eval()
    assert model(torch.randn(1, 3, 64, 64)).logits.shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("arguments", "fields", "message"),
    [
        (("resnet", "t"), {}, "head is 'resnet', expected one of upernet, "),
        (("rtdetr", "t"), {}, "head is 'rtdetr'; did you mean rt_detr or rt_detr_v2?"),
        (("uppernet", "t"), {}, "head is 'uppernet'; did you mean upernet?"),
        (("mask-2-former", "t"), {}, "head is 'mask-2-former'; did you mean mask2former or maskformer?"),
        (("dpt", "t"), {}, "dpt does not work on an InternImage: it expects a patch size and tokens"),
        ((transformers.DPTConfig, "t"), {}, "DPTConfig does not work on an InternImage: it expects a patch size"),
        (("LwDetrForObjectDetection", "t"), {}, "it builds its own vision transformer"),
        (("dino", "t"), {}, "dino is no head of transformers; build this package's InternImageDinoForObjectDetection("),
        (("mask_rcnn", "t"), {}, "build this package's InternImageMaskRCNNForInstanceSegmentation("),
        (("upernet", "huge"), {}, "size is 'huge'"),
        (("upernet", transformers.ResNetConfig()), {}, "The backbone is of type 'resnet', expected an InternImage"),
        (("upernet", 5), {}, "The backbone is of type 'int'"),
        (("upernet", "t"), {"backbone_config": tiny_config()}, "backbone_config is given twice"),
        (("upernet", "t"), {"out_features": ["stage9"]}, "stage9"),
        (("omdet_turbo", "t"), {"class_embed_dim": 256}, "class_embed_dim and decoder_hidden_dim are both 256"),
    ],
)
def test_bad_configurations(arguments, fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        head_config(*arguments, **fields)


def test_a_heads_backbone_gives_the_classifiers_features(tmp_path):
    """The original's numbers, from an official folder through a head."""
    folder = write_official_folder("tiny_h", tmp_path)
    model = from_backbone("upernet", folder, hidden_size=16, auxiliary_channels=8, num_labels=19)
    assert type(model) is transformers.UperNetForSemanticSegmentation
    assert not model.training
    assert model.config.num_labels == 19
    with torch.no_grad():
        expected = golden_model("tiny_h").model(model_input("tiny_h"), output_hidden_states=True).hidden_states[1:]
        got = model.backbone(model_input("tiny_h")).feature_maps
    for theirs, ours in zip(expected, got, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_where_a_checkpoint_is(tmp_path, monkeypatch):
    """Both the configuration and the weights come from there."""
    classifier(num_labels=7).save_pretrained(tmp_path / "part")
    where = {"cache_dir": tmp_path / "cache", "force_download": False, "local_files_only": True}
    where |= {"revision": "main", "subfolder": "part", "token": "hf_x"}
    seen = []

    def recorded(function):
        def call(*args, **kwargs):
            seen.append({name: value for name, value in kwargs.items() if name in where})
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(auto, "load_config", recorded(auto.load_config))
    monkeypatch.setattr(InternImageBackbone, "from_pretrained", recorded(InternImageBackbone.from_pretrained))
    from_backbone("detr", tmp_path, **DETR, **where)
    assert seen == [where] * 3
    load_backbone(build("upernet"), tmp_path, **where)
    assert seen == [where] * 5


def test_misspelt_fields_of_the_backbone_are_refused():
    with pytest.raises(ValueError, match="has no field 'drop_path_rat'; did you mean 'drop_path_rate'"):
        from_backbone("upernet", classifier(), **SMALL["upernet"], backbone_fields={"drop_path_rat": 0.1})


@every_head
def test_load_backbone(name, tmp_path):
    """From a saved classifier into every head; nothing but the backbone changes."""
    source = classifier()
    source.save_pretrained(tmp_path)
    model = build(name)
    before = weights(model)
    assert load_backbone(model, tmp_path) is model
    prefix, backbone = find_backbone(model)
    wanted = source.model.state_dict()
    for key, tensor in backbone.state_dict().items():
        expected = wanted[key]
        if name == "vitmatte" and key == STEM:
            assert torch.equal(tensor[:, :3], expected)
            assert not tensor[:, 3:].any()
        else:
            assert torch.equal(tensor, expected), key
    for key, tensor in model.state_dict().items():
        assert key.startswith(prefix) or torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("build_source", [InternImageModel, InternImageBackbone, InternImageForImageClassification])
def test_backbones_in_memory(build_source):
    source = awaken(build_source(tiny_config(num_labels=1000)))
    model = from_backbone("detr", source, **DETR, backbone_fields={"drop_path_rate": 0.2})
    assert model.config.backbone_config.drop_path_rate == 0.2
    assert len(model.config.backbone_config.id2label) < 1000
    assert_unchanged(find_backbone(model)[1], find_backbone(source)[1].state_dict())
    other = build("upernet")
    load_backbone(other, model)  # from one head to another
    assert_unchanged(other.backbone, find_backbone(model)[1].state_dict())
    assert other.backbone.levels[0].blocks[0].norm1[0].weight.data_ptr() != (
        find_backbone(model)[1].levels[0].blocks[0].norm1[0].weight.data_ptr()
    )


def test_type_stays_the_models(tmp_path):
    source = classifier().to(torch.bfloat16)
    source.save_pretrained(tmp_path)
    for checkpoint in (tmp_path, source):
        model = from_backbone("upernet", checkpoint, **SMALL["upernet"])
        assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
        assert model(torch.randn(1, 3, 64, 64)).logits.dtype == torch.float32
    double = load_backbone(build("upernet").double(), tmp_path)
    assert {tensor.dtype for tensor in double.parameters()} == {torch.float64}
    assert torch.equal(double.backbone.patch_embed.conv1.weight, source.model.patch_embed.conv1.weight.double())


def test_layer_scales_a_checkpoint_lacks_are_one(tmp_path):
    source = classifier()
    source.save_pretrained(tmp_path)
    model = from_backbone("upernet", tmp_path, **SMALL["upernet"], backbone_fields={"layer_scale": 1e-5})
    block = model.backbone.levels[2].blocks[1]
    assert (block.layer_scale1 == 1).all()
    assert (block.layer_scale2 == 1).all()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.model(pixels).last_hidden_state
        torch.testing.assert_close(model.backbone(pixels).feature_maps[-1], expected)


def test_layer_scales_of_the_checkpoint_are_taken():
    source = classifier(layer_scale=0.5)
    model = from_backbone("upernet", source, **SMALL["upernet"])
    assert model.config.backbone_config.layer_scale == 0.5
    assert (model.backbone.levels[0].blocks[0].layer_scale1 == 0.5).all()


def test_frozen_batch_norms():
    """DETR replaces the backbone's batch norms by frozen ones, under other names."""
    source = classifier(norm_layer="BN")
    source.model.patch_embed.norm1[0].running_mean.fill_(0.25)
    model = from_backbone("detr", source, **DETR)
    assert (find_backbone(model)[1].patch_embed.norm1[0].running_mean == 0.25).all()


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ({"channels": 32}, {}, r"channels \(32, in the model 16\)"),
        ({"depths": [1, 1, 1, 1]}, {}, r"depths \(\[1, 1, 1, 1\], in the model \[1, 1, 2, 1\]\)"),
        ({"offset_scale": 2.0}, {}, r"offset_scale \(2.0, in the model 1.0\)"),
        ({"post_norm": True}, {}, r"post_norm \(True, in the model False\)"),
        ({"dw_kernel_size": 5}, {}, r"dw_kernel_size \(5, in the model 3\)"),
        ({"act_layer": "ReLU"}, {}, r"act_layer \('ReLU', in the model 'GELU'\)"),
        ({"layer_scale": 0.1}, {}, r"layer_scale \(0.1, in the model None\)"),
        ({"num_channels": 5}, {}, r"num_channels \(5, in the model 3\)"),
        # a layer scale would switch these norms off
        (
            {"res_post_norm": True},
            {"res_post_norm": True, "layer_scale": 1.0},
            r"res_post_norm \(True, in the model False",
        ),
    ],
)
def test_other_architectures_are_refused(source, target, message, tmp_path):
    source = classifier(**source)
    source.save_pretrained(tmp_path)
    model = build("upernet", tiny_config(**target))
    before = weights(model)
    for checkpoint in (source, tmp_path):
        with pytest.raises(ValueError, match=f"differs from the model's in .*{message}"):
            load_backbone(model, checkpoint)
        assert_unchanged(model, before)


def test_spellings_of_the_same_architecture_agree():
    source = classifier(image_size=32, drop_path_rate=0.3, with_cp=True)
    spelt = tiny_config(dw_kernel_size=3, depths=(1, 1, 2, 1), level2_post_norm_block_ids=[1])
    model = load_backbone(build("upernet", spelt), source)
    assert_unchanged(model.backbone, source.model.state_dict())


@pytest.mark.parametrize(
    "fields",
    [
        {"core_op": "DCNv3_pytorch"},
        {"image_size": 32},
        {"drop_rate": 0.1},
        {"drop_path_rate": 0.1},
        {"drop_path_type": "uniform"},
        {"with_cp": True},
        {"initializer_range": 0.1},
        {"cls_scale": 2.0},
        {"use_clip_projector": True},
    ],
    ids=str,
)
def test_fields_that_change_no_results_may_differ(fields):
    source = InternImageBackbone(tiny_config(**fields))
    assert_unchanged(load_backbone(build("upernet"), source).backbone, source.state_dict())


@pytest.mark.parametrize(("count", "listed"), [(5, "extra0, .*, extra4;"), (6, "extra0, .*, extra4 and 1 more;")])
def test_five_names_are_listed(count, listed):
    source = classifier()
    for index in range(count):
        source.model.register_parameter(f"extra{index}", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match=f"no place for: {listed}"):
        load_backbone(build("upernet"), source)


def test_a_backbone_partly_without_values_is_refused():
    model = build("upernet")
    model.backbone.levels[3].to("meta")
    with pytest.raises(
        ValueError, match="UperNetForSemanticSegmentation is on the meta device, which holds no weights"
    ):
        load_backbone(model, classifier())


def test_bad_checkpoints_change_nothing(tmp_path):
    model = build("upernet")
    before = weights(model)
    folder = tmp_path / "lacking"
    source = classifier()
    kept = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("model.levels.1.")}
    source.save_pretrained(folder, state_dict=kept)
    with pytest.raises(ValueError, match=r"lacks weights of the backbone: levels\.1\.\S+, .* and \d+ more"):
        load_backbone(model, folder)
    source.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"has no place for: extra\.bias, extra\.weight; "):
        load_backbone(model, source)
    del source.model.extra
    source.model.patch_embed.norm1[1] = torch.nn.LayerNorm(7)
    with pytest.raises(ValueError, match=r"other shapes .*: patch_embed\.norm1\.1\.\w+ \(7,\), in the model \(8,\)"):
        load_backbone(model, source)
    model.save_pretrained(tmp_path / "head")
    with pytest.raises(ValueError, match="holds a model of type 'upernet', expected an InternImage"):
        load_backbone(model, tmp_path / "head")
    with pytest.raises(OSError, match="nowhere"):
        load_backbone(model, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="InternImageBackbone is on the meta device"), torch.device("meta"):
        load_backbone(InternImageBackbone(tiny_config()), source)
    assert_unchanged(model, before)


def test_find_backbone():
    assert find_backbone(classifier())[0] == "model."
    assert find_backbone(InternImageBackbone(tiny_config()))[0] == ""
    wrapped = torch.nn.ModuleDict({"module": build("upernet")})
    prefix, backbone = find_backbone(wrapped)
    assert prefix == "module.backbone."
    assert wrapped.get_submodule(prefix.removesuffix(".")) is backbone
    resnet = transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=transformers.ResNetConfig(
                embedding_size=8,
                hidden_sizes=[8, 8, 8, 8],
                depths=[1, 1, 1, 1],
                layer_type="basic",
                out_features=STAGES,
            ),
            **SMALL["upernet"],
        )
    )
    for function in (find_backbone, gradient_checkpointing, lambda model: load_backbone(model, classifier())):
        with pytest.raises(ValueError, match="has no InternImage inside, its backbone is ResNetBackbone"):
            function(resnet)
    with pytest.raises(ValueError, match="Linear has no InternImage inside; give"):
        find_backbone(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"several InternImages inside: 0\.backbone, 1\.backbone; give one"):
        find_backbone(torch.nn.Sequential(build("upernet"), build("upernet")))


def test_gradient_checkpointing_from_the_start():
    model = build("upernet", tiny_config(with_cp=True)).train()
    assert train(model, "upernet")[2] == 2
    gradient_checkpointing(model, False)
    assert train(model, "upernet")[2] == 1
    gradient_checkpointing(model)
    assert train(model, "upernet")[2] == 2
    assert train(model.eval(), "upernet")[2] == 1


def test_composite_backbone(tmp_path):
    """Both parts take the weights of one InternImage, or a composite one takes another's."""
    from hf_internimage.models.configuration_cb_internimage import CBInternImageConfig

    source = classifier()
    source.save_pretrained(tmp_path)
    model = build("deformable_detr", CBInternImageConfig(**T_FIELDS))
    prefix, backbone = find_backbone(model)
    assert model.get_submodule(prefix.removesuffix(".")) is backbone
    assert type(backbone).__name__ == "CBInternImageBackbone"
    for parameter in backbone.cb_linears.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    load_backbone(model, tmp_path)
    assert_unchanged(backbone.cb_modules[0], source.model.state_dict())
    assert_unchanged(backbone.cb_modules[1].levels, source.model.levels.state_dict())
    assert all((parameter == 0.5).all() for parameter in backbone.cb_linears.parameters())
    with torch.no_grad():
        pixels = torch.randn(1, 3, 64, 64)
        expected = source.model(pixels).last_hidden_state
        torch.testing.assert_close(backbone(pixels).feature_maps[-1], expected, rtol=0, atol=0)
    other = from_backbone("deformable_detr", model, **DETR)
    assert_unchanged(find_backbone(other)[1], backbone.state_dict())
    plain = build("upernet")
    with pytest.raises(ValueError, match="model_type \\('cb_internimage', in the model 'internimage'\\)"):
        load_backbone(plain, model)


def test_other_model_types_are_refused(monkeypatch):
    """Even if all fields of the architecture agree."""

    class OtherConfig(InternImageConfig):
        model_type = "other"

    monkeypatch.setitem(auto.MODELS, "other", auto.MODELS["internimage"])
    plain, other = build("upernet"), InternImageBackbone(OtherConfig(**T_FIELDS, num_labels=5))
    for source, target in ((plain, other), (other, plain)):
        types = f"{find_backbone(source)[1].config.model_type!r}, in the model '"
        with pytest.raises(ValueError, match=rf"differs from the model's in model_type \({types}"):
            load_backbone(target, source)


def test_a_saved_head_loads_in_a_fresh_process(tmp_path):
    build("upernet").save_pretrained(tmp_path)
    printed = run_python(
        f"""
        from hf_internimage import heads
        from transformers import AutoModelForSemanticSegmentation
        model = AutoModelForSemanticSegmentation.from_pretrained({str(tmp_path)!r})
        print(type(model.backbone).__name__, *heads.HEADS)
        """
    )
    assert printed.split() == ["InternImageBackbone", *HEADS]


def test_documentation_lists_every_head():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\d-]+) \| .*? \| (yes|no) \|", HEADS_PAGE.read_text(), re.MULTILINE)
    assert {name for name, *_ in rows} == set(HEADS)
    for name, model, stages, checkpointing in rows:
        assert model == HEADS[name].model
        first, last = int(stages[0]), int(stages[-1])
        assert HEADS[name].strides == tuple(2 ** (stage + 1) for stage in range(first, last + 1))
        own = getattr(transformers, model).supports_gradient_checkpointing
        assert (checkpointing == "yes") is own, name


def test_documentation_lists_the_unsuitable_heads_with_their_reasons():
    section = HEADS_PAGE.read_text().partition("## Heads that do not work")[2]
    rows = re.findall(r"^\| (\w.*?) \| (.*?) \|$", section, re.MULTILINE)[1:]
    documented = {}
    for classes, reason in rows:
        for name in classes.split(", "):
            documented[re.sub("For[A-Z].*", "", name).lower()] = reason
            if hasattr(transformers, name):
                with pytest.raises(ValueError, match=re.escape(f"{name} does not work on an InternImage: it")):
                    head_config(getattr(transformers, name), "t")
            with pytest.raises(ValueError, match=re.escape(reason)):
                head_config(name, "t")
    assert set(documented) == set(UNSUITABLE)


@pytest.mark.parametrize("name", ["rt_detr", "rt_detr_v2", "d_fine", "deimv2"])
def test_more_queries_than_positions(name):
    """The least image that has enough runs; one with fewer positions is refused by the check, and fails without it."""
    model = build(name, num_queries=84).eval()
    check_queries(model.config, 64, 64)  # 8x8, 4x4 and 2x2 positions
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
        with pytest.raises(RuntimeError, match="out of range"):
            model(torch.randn(1, 3, 64, 32))
    message = "num_queries is 84, but images of 64x32 pixels have only 42 positions to choose from"
    with pytest.raises(ValueError, match=message):
        check_queries(model.config, 64, 32)


def test_other_heads_have_queries_of_their_own():
    check_queries(head_config("detr", "t"), 32, 32)
