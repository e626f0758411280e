# SPDX-License-Identifier: MIT
"""DINO's training: denoising queries by hand and by loops, the loss against its definition written out."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from hf_internimage.models import loss_internimage_dino
from hf_internimage.models.configuration_internimage_dino import InternImageDinoConfig
from hf_internimage.models.loss_internimage_dino import dino_loss, make_denoising_queries

CLASSES, QUERIES, LAYERS = 4, 6, 3


def config(**fields):
    return InternImageDinoConfig(num_labels=CLASSES, num_queries=QUERIES, decoder_layers=LAYERS, **fields)


def label(*rows, dtype=torch.float32):
    """Rows of (class, centre x, centre y, width, height) as an image's labels."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
    return {"class_labels": table[:, 0].long(), "boxes": table[:, 1:].to(dtype)}


def random_labels(*counts, dtype=torch.float64):
    """Images with so many boxes, all inside."""
    labels = []
    for count in counts:
        sides = torch.rand(count, 2, dtype=dtype) * 0.4 + 0.05
        centres = sides / 2 + torch.rand(count, 2, dtype=dtype) * (1 - sides)
        labels.append({"class_labels": torch.randint(CLASSES, (count,)), "boxes": torch.cat([centres, sides], 1)})
    return labels


def random_outputs(labels, denoising=None, dtype=torch.float64):
    """The tensors `dino_loss` takes, by name; leaves that require gradients are logits, also of the boxes."""
    number = len(labels)
    shapes = {"logits": (LAYERS, number, QUERIES, CLASSES), "boxes": (LAYERS, number, QUERIES, 4)}
    shapes |= {"encoder_logits": (number, QUERIES, CLASSES), "encoder_boxes": (number, QUERIES, 4)}
    if denoising is not None:
        total = denoising.labels.shape[1]
        shapes |= {"denoising_logits": (LAYERS, number, total, CLASSES), "denoising_boxes": (LAYERS, number, total, 4)}
    return {name: torch.randn(shape, dtype=dtype, requires_grad=True) for name, shape in shapes.items()}


def loss_of(outputs, labels, denoising=None, **fields):
    outputs = {name: value.sigmoid() if name.endswith("boxes") else value for name, value in outputs.items()}
    none = {"denoising_logits": None, "denoising_boxes": None}
    return dino_loss(config(**fields), denoising=denoising, labels=labels, **{**none, **outputs})


def sides_of(box):
    x, y, width, height = box
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def giou(one, other):
    left, top, right, bottom = sides_of(one)
    left2, top2, right2, bottom2 = sides_of(other)
    across, down = min(right, right2) - max(left, left2), min(bottom, bottom2) - max(top, top2)
    common = max(across, 0) * max(down, 0)
    union = (right - left) * (bottom - top) + (right2 - left2) * (bottom2 - top2) - common
    hull = (max(right, right2) - min(left, left2)) * (max(bottom, bottom2) - min(top, top2))
    return common / union - (hull - union) / hull


def focal(logit, positive, epsilon=0.0):
    p = 1 / (1 + math.exp(-logit))
    if positive:
        return 0.25 * (1 - p) ** 2 * -math.log(p + epsilon)
    return 0.75 * p**2 * -math.log(1 - p + epsilon)


def l1(one, other):
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def matched(logits, boxes, classes, targets):
    """{query: box} at the least cost."""
    cost = [
        [
            2 * (focal(row[c], True, 1e-8) - focal(row[c], False, 1e-8)) + 5 * l1(box, target) - 2 * giou(box, target)
            for c, target in zip(classes, targets, strict=True)
        ]
        for row, box in zip(logits, boxes, strict=True)
    ]
    return dict(zip(*linear_sum_assignment(cost), strict=True)) if targets else {}


def slow_set_loss(logits, boxes, labels, norm, pairs=None):
    """(ce, bbox, giou) of one layer; `pairs` per image, found by matching if None."""
    ce = bbox = iou = 0.0
    for image, label in enumerate(labels):
        rows, places = logits[image].tolist(), boxes[image].tolist()
        classes, targets = label["class_labels"].tolist(), label["boxes"].tolist()
        chosen = matched(rows, places, classes, targets) if pairs is None else pairs[image]
        for query, row in enumerate(rows):
            wanted = classes[chosen[query]] if query in chosen else None
            ce += sum(focal(logit, c == wanted) for c, logit in enumerate(row))
        bbox += sum(l1(places[query], targets[box]) for query, box in chosen.items())
        iou += sum(1 - giou(places[query], targets[box]) for query, box in chosen.items())
    return ce / norm, bbox / norm, iou / norm


def slow_loss(outputs, labels, denoising=None):
    values = {name: (t.sigmoid() if name.endswith("boxes") else t).detach() for name, t in outputs.items()}
    count = sum(len(label["boxes"]) for label in labels)
    names = [*(f"_{i}" for i in range(LAYERS - 1)), ""]
    parts = {
        name: slow_set_loss(values["logits"][i], values["boxes"][i], labels, max(count, 1))
        for i, name in enumerate(names)
    }
    parts["_enc"] = slow_set_loss(values["encoder_logits"], values["encoder_boxes"], labels, max(count, 1))
    if denoising is not None:
        size, groups = denoising.group_size, denoising.num_groups
        pairs = [
            {2 * size * group + box: box for group in range(groups) for box in range(len(label["boxes"]))}
            for label in labels
        ]
        for i, name in enumerate(names):
            layer = values["denoising_logits"][i], values["denoising_boxes"][i]
            parts[f"_dn{name}"] = slow_set_loss(*layer, labels, count * groups, pairs)
    total = sum(ce + 5 * bbox + 2 * iou for ce, bbox, iou in parts.values())
    flat = {f"loss_{kind}{name}": value for name, row in parts.items() for kind, value in zip(KINDS, row, strict=True)}
    return total, flat


KINDS = ("ce", "bbox", "giou")


def test_queries_by_hand():
    """Without noise, two images, room for two groups of two boxes."""
    labels = [label((3, 0.5, 0.5, 0.2, 0.4), (1, 0.25, 0.75, 0.5, 0.5)), label((0, 0.1, 0.2, 0.2, 0.4))]
    queries = make_denoising_queries(labels, 2, CLASSES, num_denoising=5, label_noise=0, box_noise=0)
    assert (queries.num_groups, queries.group_size) == (2, 2)
    assert queries.labels.tolist() == [[3, 1] * 4, [0, CLASSES] * 4]
    assert queries.labels.dtype == torch.int64
    nought, log3 = 0.0, math.log(3)
    first, second = [nought, nought, -math.log(4), -math.log(1.5)], [-log3, log3, nought, nought]
    other, padding = [-math.log(9), -math.log(4), -math.log(4), -math.log(1.5)], [0.0] * 4
    expected = torch.tensor([[first, second] * 4, [other, padding] * 4])
    torch.testing.assert_close(queries.reference_logits, expected, rtol=0, atol=1e-6)
    x, o = True, False
    own, other = [o, o, o, o, x, x, x, x, o, o], [x, x, x, x, o, o, o, o, o, o]
    assert queries.attention_mask.tolist() == [own] * 4 + [other] * 4 + [[x] * 8 + [o] * 2] * 2


@pytest.mark.parametrize(("counts", "num_denoising"), [((3, 1), 10), ((2, 0, 5), 7), ((4,), 2), ((1, 1), 3)])
def test_shapes_and_mask_by_loops(counts, num_denoising):
    labels = random_labels(*counts, dtype=torch.float32)
    queries = make_denoising_queries(labels, QUERIES, CLASSES, num_denoising=num_denoising)
    size, groups = max(counts), max(1, num_denoising // max(counts))
    total = groups * 2 * size
    assert (queries.group_size, queries.num_groups) == (size, groups)
    assert queries.labels.shape == (len(counts), total)
    assert queries.reference_logits.shape == (len(counts), total, 4)
    assert queries.reference_logits.dtype == torch.float32
    for image, count in enumerate(counts):
        for query in range(total):
            is_padding = query % size >= count
            assert (queries.labels[image, query] == CLASSES) == is_padding
            assert queries.reference_logits[image, query].eq(0).all() == is_padding
    assert queries.attention_mask.shape == (total + QUERIES, total + QUERIES)
    for row in range(total + QUERIES):
        for column in range(total + QUERIES):
            row_group = row // (2 * size) if row < total else None
            hidden = column < total and column // (2 * size) != row_group
            assert queries.attention_mask[row, column] == hidden


def shifts(box_noise):
    """Return each corner coordinate's shift in halves of the side: (groups, positive or negative query, boxes, 4)."""
    boxes = torch.tensor([[0.5, 0.5, 0.1, 0.2], [0.4, 0.6, 0.3, 0.1]])
    labels = [{"class_labels": torch.tensor([1, 2]), "boxes": boxes}]
    queries = make_denoising_queries(labels, 1, CLASSES, num_denoising=1000, box_noise=box_noise)
    x, y, width, height = queries.reference_logits[0].double().sigmoid().view(500, 2, 2, 4).unbind(-1)
    noised = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
    x, y, width, height = boxes.double().unbind(-1)
    clean = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
    return (noised - clean) / (torch.stack([width, height, width, height], -1) / 2)


def test_positive_noise_is_smaller_than_negative():
    shift = shifts(box_noise=0.5)  # no corners swap, so the boxes can be read back
    positive, negative = shift[:, 0], shift[:, 1]
    assert positive.abs().max() < 0.5 + 1e-4
    assert negative.abs().min() > 0.5 - 1e-4
    assert negative.abs().max() < 1 + 1e-4
    for part, mean in ((positive, 0.25), (negative, 0.75)):
        average = part.abs().mean((0, 1))  # of each coordinate; 1000 uniform draws
        assert (average - mean).abs().max() < 0.02
        assert (part.sign().mean((0, 1))).abs().max() < 0.12
        moves = part.reshape(1000, 4).T
        assert (moves.corrcoef() - torch.eye(4)).abs().max() < 0.15  # the four coordinates move independently


def test_noised_boxes_stay_in_the_image():
    """Boxes at the border with the whole noise: corners are clamped, swapped ones give the smallest side."""
    labels = [label((0, 0.5, 0.5, 1, 1), (1, 0.05, 0.05, 0.1, 0.1))]
    queries = make_denoising_queries(labels, 1, CLASSES, num_denoising=400)
    smallest = math.log(1e-3)
    assert queries.reference_logits.isfinite().all()
    assert queries.reference_logits[..., 2:].min() == pytest.approx(smallest)
    boxes = queries.reference_logits[0].double().sigmoid().view(200, 2, 2, 4)
    assert boxes[:, 0, 0, 2:].min() < 0.1  # a positive query's corners can nearly meet ...
    start, end = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    assert start.min() > -2e-3
    assert end.max() < 1 + 2e-3
    swapped = boxes[:, 1, :, 2:] < 1.1e-3  # ... and only a negative one's swap
    assert 0.05 < swapped.double().mean() < 0.4
    assert not (boxes[:, 0, :, 2:] < 1e-3 - 1e-5).any()


@pytest.mark.parametrize("label_noise", [0.0, 0.5, 1.0])
def test_label_noise_redraws_half_as_many_classes(label_noise):
    labels = [label((2, 0.5, 0.5, 0.2, 0.2)), label()]
    queries = make_denoising_queries(labels, 1, CLASSES, num_denoising=4000, label_noise=label_noise)
    changed = (queries.labels[0] != 2).double().mean().item()
    assert changed == pytest.approx(label_noise / 2 * (CLASSES - 1) / CLASSES, abs=0.02)
    assert queries.labels[0].max() < CLASSES
    assert queries.labels[1].eq(CLASSES).all()  # padding is never redrawn
    if label_noise:
        assert set(queries.labels[0].tolist()) == set(range(CLASSES))


def test_queries_follow_the_seed():
    labels = random_labels(3, 2)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(make_denoising_queries(labels, QUERIES, CLASSES))
    assert torch.equal(results[0].labels, results[1].labels)
    assert torch.equal(results[0].reference_logits, results[1].reference_logits)
    assert not torch.equal(results[0].reference_logits, results[2].reference_logits)


def test_no_queries_without_boxes_or_when_switched_off():
    assert make_denoising_queries([label(), label()], QUERIES, CLASSES) is None
    assert make_denoising_queries(random_labels(2), QUERIES, CLASSES, num_denoising=0) is None


@pytest.mark.parametrize("counts", [(2, 3), (0, 4), (1,), (QUERIES + 3, 2)], ids=str)
def test_loss_is_its_definition(counts):
    """One image without boxes, one with more boxes than queries among them."""
    labels = random_labels(*counts)
    denoising = make_denoising_queries(labels, QUERIES, CLASSES, num_denoising=12)
    outputs = random_outputs(labels, denoising)
    loss, parts = loss_of(outputs, labels, denoising)
    expected, expected_parts = slow_loss(outputs, labels, denoising)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, rel=0, abs=1e-9)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected_parts, rel=0, abs=1e-9)
    loss.backward()
    for name, value in outputs.items():
        assert value.grad.isfinite().all()
        learns = value.grad.abs().sum((-1, -2)) > 0  # each image, in each layer
        assert (learns == torch.tensor([count > 0 or "logits" in name for count in counts])).all(), name


def test_gradient_is_the_slope_of_the_definition():
    labels = random_labels(2, 1)
    denoising = make_denoising_queries(labels, QUERIES, CLASSES, num_denoising=2)
    outputs = random_outputs(labels, denoising)
    loss, _ = loss_of(outputs, labels, denoising)
    loss.backward()
    step = 1e-6
    for name, value in outputs.items():
        direction = torch.randn_like(value)
        ahead, behind = (
            slow_loss({**outputs, name: value + sign * step * direction}, labels, denoising)[0] for sign in (1, -1)
        )
        assert (ahead - behind) / (2 * step) == pytest.approx((value.grad * direction).sum().item(), rel=1e-6), name


def test_without_denoising():
    labels = random_labels(2, 3)
    outputs = random_outputs(labels)
    loss, parts = loss_of(outputs, labels)
    expected, expected_parts = slow_loss(outputs, labels)
    assert loss.item() == pytest.approx(expected, rel=0, abs=1e-9)
    assert set(parts) == set(expected_parts)


def test_only_the_last_layer_without_auxiliary_loss():
    labels = random_labels(2, 3)
    denoising = make_denoising_queries(labels, QUERIES, CLASSES, num_denoising=3)
    outputs = random_outputs(labels, denoising)
    loss, parts = loss_of(outputs, labels, denoising, auxiliary_loss=False)
    _, all_parts = loss_of(outputs, labels, denoising)
    assert set(parts) == {f"loss_{kind}{suffix}" for kind in KINDS for suffix in ("", "_enc", "_dn")}
    for name, value in parts.items():
        assert value == all_parts[name]
    weights = {"ce": 1, "bbox": 5, "giou": 2}
    assert loss.item() == pytest.approx(
        sum(weights[name.split("_")[1]] * value.item() for name, value in parts.items())
    )


def test_weights_come_from_the_configuration():
    labels = random_labels(2, 3)
    outputs = random_outputs(labels)
    only = {"class_loss_coefficient": 0.0, "bbox_loss_coefficient": 0.0, "giou_loss_coefficient": 0.0}
    for kind, field in zip(KINDS, only, strict=True):
        loss, parts = loss_of(outputs, labels, **{**only, field: 3.0})
        total = sum(value.item() for name, value in parts.items() if name.startswith(f"loss_{kind}"))
        assert loss.item() == pytest.approx(3 * total)


def test_no_boxes_at_all():
    labels = [label(dtype=torch.float64), label(dtype=torch.float64)]
    outputs = random_outputs(labels)
    loss, parts = loss_of(outputs, labels)
    expected, expected_parts = slow_loss(outputs, labels)
    assert loss.item() == pytest.approx(expected, rel=0, abs=1e-9)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected_parts, rel=0, abs=1e-9)
    loss.backward()
    assert all(value.grad.isfinite().all() for value in outputs.values())  # no parameter drops out of the graph


def test_perfect_predictions():
    """Each query that stands on a box, in an order of its own, and says its class without doubt."""
    labels = random_labels(3, 2)
    denoising = make_denoising_queries(labels, QUERIES, CLASSES, num_denoising=6)
    outputs = random_outputs(labels, denoising)
    size = denoising.group_size
    with torch.no_grad():
        for name in ("logits", "encoder_logits", "denoising_logits"):
            outputs[name].fill_(-20)
        for image, target in enumerate(labels):
            order = torch.randperm(QUERIES)
            places = {order[box].item(): box for box in range(len(target["boxes"]))}
            denoised = {
                2 * size * group + box: box for group in range(denoising.num_groups) for box in range(len(places))
            }
            for head, pairs in (("", places), ("encoder_", places), ("denoising_", denoised)):
                for query, box in pairs.items():
                    outputs[f"{head}boxes"][..., image, query, :] = target["boxes"][box].logit()
                    outputs[f"{head}logits"][..., image, query, target["class_labels"][box]] = 20
    loss, parts = loss_of(outputs, labels, denoising)
    assert loss.item() < 1e-6
    assert set(parts) == set(slow_loss(outputs, labels, denoising)[1])
    with torch.no_grad():
        outputs["denoising_boxes"][-1, 0, 0] += 1
    worse, parts = loss_of(outputs, labels, denoising)
    assert [name for name, value in parts.items() if value > 1e-6] == ["loss_bbox_dn", "loss_giou_dn"]
    assert worse > loss + 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype):
    labels = random_labels(2, 3, dtype=torch.float32)
    denoising = make_denoising_queries(labels, QUERIES, CLASSES, num_denoising=6)
    low = {name: value.to(dtype) for name, value in random_outputs(labels, denoising).items()}
    arguments = {name: value.sigmoid() if name.endswith("boxes") else value for name, value in low.items()}
    expected, _ = dino_loss(
        config(), denoising=denoising, labels=labels, **{name: value.float() for name, value in arguments.items()}
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss, parts = dino_loss(config(), denoising=denoising, labels=labels, **arguments)
    assert loss.dtype == torch.float32
    assert {value.dtype for value in parts.values()} == {torch.float32}
    assert loss == expected


def test_half_precision_labels_give_float32_queries():
    labels = [{**entry, "boxes": entry["boxes"].bfloat16()} for entry in random_labels(2, 1)]
    queries = make_denoising_queries(labels, QUERIES, CLASSES)
    assert queries.reference_logits.dtype == torch.float32
    assert queries.reference_logits.isfinite().all()


def test_number_of_boxes_is_the_mean_over_processes(monkeypatch):
    """Three processes, the others with 10 boxes and 40 denoised ones together, this one with 2 and 2 x 3."""
    labels = random_labels(2)
    denoising = make_denoising_queries(labels, QUERIES, CLASSES, num_denoising=6)
    outputs = random_outputs(labels, denoising)
    _, alone = loss_of(outputs, labels, denoising)
    distributed = loss_internimage_dino.torch.distributed
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(distributed, "all_reduce", lambda counts: counts.add_(torch.tensor([10.0, 40.0])))
    _, together = loss_of(outputs, labels, denoising)
    for name, value in together.items():
        scale = (2 * 3) / ((40 + 2 * 3) / 3) if "_dn" in name else 2 / ((10 + 2) / 3)
        assert value.item() == pytest.approx(alone[name].item() * scale)
    # no process has a box
    labels = random_labels(0)
    monkeypatch.setattr(distributed, "all_reduce", lambda counts: counts)
    outputs = random_outputs(labels)
    loss, _ = loss_of(outputs, labels)
    assert loss.item() == pytest.approx(slow_loss(outputs, labels)[0])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"class_labels": torch.tensor([0, CLASSES])}, "class_labels hold 0 to 4, but the model has 4 labels"),
        ({"class_labels": torch.tensor([-1, 0])}, "class_labels hold -1 to "),
        (
            {"class_labels": torch.tensor([1])},
            r"labels\[1\] must have class_labels \(n,\) and boxes \(n, 4\), got .*1,",
        ),
        ({"boxes": torch.tensor([10.0, 20, 30, 40]).repeat(2, 1)}, r"fractions of the image, got \[10.0, 20.0, 30.0"),
        ({"boxes": torch.full((2, 4), torch.nan)}, "fractions of the image, got .nan"),
        ({"boxes": torch.tensor([[0.5, 0.5, -0.1, 0.1]] * 2)}, "fractions of the image"),
    ],
)
def test_bad_labels_are_refused(broken, message):
    labels = random_labels(1, 2, dtype=torch.float32)
    outputs = random_outputs(labels)
    labels[1].update(broken)
    with pytest.raises(ValueError, match=message):
        make_denoising_queries(labels, QUERIES, CLASSES)
    with pytest.raises(ValueError, match=message):
        loss_of(outputs, labels)


def test_boxes_may_be_rounded():
    """By a thousandth of the image at its border, as numbers of a file are."""
    for place in range(4):
        for value, is_valid in ((1.0009, True), (1.0011, False), (-0.0009, True), (-0.0011, False)):
            box = torch.full((1, 4), 0.5)
            box[0, place] = value
            label = {"class_labels": torch.tensor([0]), "boxes": box}
            if is_valid:
                make_denoising_queries([label], 3, 2)
            else:
                with pytest.raises(ValueError, match=r"boxes must be .* as fractions of the image, got"):
                    make_denoising_queries([label], 3, 2)


def test_defaults_of_queries_are_the_originals():
    labels = [{"class_labels": torch.tensor([0, 1, 2]), "boxes": torch.full((3, 4), 0.5)}]
    given = {"num_denoising": 100, "label_noise": 0.5, "box_noise": 1.0}
    queries = []
    for fields in ({}, given):
        torch.manual_seed(0)
        queries.append(make_denoising_queries(labels, 4, 5, **fields))
    assert queries[0].num_groups == queries[1].num_groups == 33
    assert torch.equal(queries[0].labels, queries[1].labels)
    assert torch.equal(queries[0].reference_logits, queries[1].reference_logits)
