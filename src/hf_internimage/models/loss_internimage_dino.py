# SPDX-License-Identifier: MIT
"""Training of DINO detectors: denoising queries for the decoder, and the loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
from transformers.models.deformable_detr.modeling_deformable_detr import inverse_sigmoid

from .configuration_internimage_dino import InternImageDinoConfig
from .precision import at_least_float32

Labels = Sequence[dict[str, Tensor]]
Indices = list[tuple[Tensor, Tensor]]  # per image: queries, and the box of each

# Tolerance around 0..1 for boxes that touch the image's border.
_ROUNDING = 1e-3


@dataclass
class DenoisingQueries:
    """Noised copies of the annotated boxes, to be restored by the decoder (or classified as background).

    There are D = num_groups * 2 * group_size queries per image, ordered group by group. Each group has group_size
    positive queries (little noise), then group_size negative queries (more noise), in the order of the image's boxes,
    padded to group_size. They come before the Q matching queries.
    """

    labels: Tensor
    """(N, D) int64: class to embed; `num_labels` for padding."""
    reference_logits: Tensor
    """(N, D, 4): inverse sigmoid of the noised boxes (centre x, centre y, width, height); 0 for padding."""
    attention_mask: Tensor
    """(D + Q, D + Q) bool: True where the query of the row may not attend to the query of the column."""
    num_groups: int
    group_size: int


def make_denoising_queries(
    labels: Labels,
    num_queries: int,
    num_labels: int,
    *,
    num_denoising: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
) -> DenoisingQueries | None:
    """Draw contrastive denoising queries with PyTorch's global generator; return None if no image has a box.

    There are as many groups as fit into `num_denoising` pairs of queries, at least one; 0 disables them. A class is
    replaced by a random one with probability `label_noise / 2`. Each corner coordinate of a box is shifted in a random
    direction by 0 to 1 (positive queries) or 1 to 2 (negative queries) times `box_noise` times half the box's side, and
    clamped to the image. Matching queries do not attend to denoising queries, which contain the answers. Denoising
    queries attend to their own group, with its padding, and to the matching queries, but to no other group.

    labels: one dict per image, `class_labels` (n,) int64 in 0..num_labels-1 and `boxes` (n, 4), centre x, centre y,
    width, height as fractions of the image.
    Raises: ValueError for other labels.
    Source: DINO (arXiv 2203.03605), section 3.3; CdnQueryGenerator of mmdet 2.28.
    """
    _check_labels(labels, num_labels)
    group_size = max(len(label["class_labels"]) for label in labels)
    if group_size == 0 or num_denoising == 0:
        return None
    num_groups = max(1, num_denoising // group_size)
    shape = (len(labels), num_groups, 2, group_size)  # image, group, positive or negative, box

    classes = pad_sequence([label["class_labels"] for label in labels], batch_first=True, padding_value=num_labels)
    classes = classes[:, None, None].expand(shape)
    padding = classes == num_labels
    redrawn = (torch.rand(shape, device=classes.device) < label_noise / 2) & ~padding
    classes = torch.where(redrawn, torch.randint(num_labels, shape, device=classes.device), classes)

    boxes = pad_sequence([at_least_float32(label["boxes"]) for label in labels], batch_first=True)
    boxes = boxes[:, None, None].expand(*shape, 4)
    centres, sides = boxes.split(2, dim=-1)
    corners = torch.cat([centres - sides / 2, centres + sides / 2], dim=-1)  # left, top, right, bottom
    distance = torch.rand_like(corners)
    distance[:, :, 1] += 1
    direction = torch.randint_like(corners, 2) * 2 - 1
    corners = corners + direction * distance * torch.cat([sides, sides], dim=-1) / 2 * box_noise
    starts, ends = corners.clamp(0, 1).split(2, dim=-1)
    # A side is negative if noise has swapped two corners; the inverse sigmoid clamps it to the smallest side.
    references = inverse_sigmoid(torch.cat([(starts + ends) / 2, ends - starts], dim=-1), eps=1e-3)
    references = references.masked_fill(padding[..., None], 0)

    num_denoised = num_groups * 2 * group_size
    attention_mask = torch.zeros((num_denoised + num_queries,) * 2, dtype=torch.bool, device=classes.device)
    attention_mask[num_denoised:, :num_denoised] = True
    group = torch.arange(num_denoised, device=classes.device) // (2 * group_size)
    attention_mask[:num_denoised, :num_denoised] = group[:, None] != group
    return DenoisingQueries(classes.flatten(1), references.flatten(1, 3), attention_mask, num_groups, group_size)


def dino_loss(
    config: InternImageDinoConfig,
    logits: Tensor,
    boxes: Tensor,
    encoder_logits: Tensor,
    encoder_boxes: Tensor,
    denoising: DenoisingQueries | None,
    denoising_logits: Tensor | None,
    denoising_boxes: Tensor | None,
    labels: Labels,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss to minimise, and its parts before weighting.

    The predictions of every decoder layer (only the last one without `auxiliary_loss`) and the encoder's proposals are
    each matched with the annotated boxes at the least cost. Matched queries are trained on class (sigmoid focal loss)
    and box (L1 and generalised IoU), the others on background. Sums are divided by the number of boxes. Denoising
    queries belong to a box by construction; negative ones and padding are background, and their sums are divided by
    the number of boxes times groups. Both numbers are means over the processes of distributed training, at least 1.
    The focal loss has the configuration's `focal_alpha` and gamma 2; the class cost of matching has alpha 0.25.

    logits: (L, N, Q, C), boxes: (L, N, Q, 4) of the L decoder layers, last layer last; encoder_logits (N, Q, C) and
    encoder_boxes (N, Q, 4); denoising_logits (L, N, D, C) and denoising_boxes (L, N, D, 4) belong to `denoising`, and
    are not read if that is None. All boxes are (centre x, centre y, width, height) as fractions of the image.
    labels: as for `make_denoising_queries`.

    Returns: the sum, and `loss_ce`, `loss_bbox`, `loss_giou` of the last layer, with the suffix `_i` of layer i, `_enc`
    of the encoder, `_dn` and `_dn_i` of the denoising queries; float32, or float64 if the logits are.
    Raises: ValueError for labels that do not fit; ImportError without scipy.
    Source: DINO (arXiv 2203.03605); DINOHead of mmdet 2.28.
    """
    _check_labels(labels, logits.shape[-1])
    criterion = DeformableDetrImageLoss(
        matcher=DeformableDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost),
        num_classes=logits.shape[-1],
        focal_alpha=config.focal_alpha,
        losses=["labels", "boxes"],
    )
    logits, boxes = at_least_float32(logits), at_least_float32(boxes)
    labels = [{**label, "boxes": label["boxes"].to(boxes.dtype)} for label in labels]
    count = sum(len(label["class_labels"]) for label in labels)
    groups = 0 if denoising is None else denoising.num_groups
    num_boxes, num_denoised = _mean_over_processes([count, count * groups], logits.device)

    layers = slice(None) if config.auxiliary_loss else slice(-1, None)
    logits, boxes = logits[layers], boxes[layers]
    heads = [(suffix, logits[i], boxes[i]) for i, suffix in enumerate(_layer_suffixes(len(logits)))]
    heads.append(("_enc", at_least_float32(encoder_logits), at_least_float32(encoder_boxes)))
    parts = {}
    for suffix, scores, places in heads:
        indices = criterion.matcher({"logits": scores, "pred_boxes": places}, labels)
        parts.update(_set_loss(criterion, scores, places, labels, indices, num_boxes, suffix))
    if denoising is not None and denoising_logits is not None and denoising_boxes is not None:
        denoising_logits = at_least_float32(denoising_logits[layers])
        denoising_boxes = at_least_float32(denoising_boxes[layers])
        indices = _denoising_indices(denoising, labels)
        for i, suffix in enumerate(_layer_suffixes(len(denoising_logits))):
            scores, places = denoising_logits[i], denoising_boxes[i]
            parts.update(_set_loss(criterion, scores, places, labels, indices, num_denoised, f"_dn{suffix}"))

    weights = {
        "ce": config.class_loss_coefficient,
        "bbox": config.bbox_loss_coefficient,
        "giou": config.giou_loss_coefficient,
    }
    loss = torch.stack([value * weights[name.split("_")[1]] for name, value in parts.items()]).sum()
    return loss, parts


def _check_labels(labels: Labels, num_labels: int) -> None:
    """Raise ValueError unless shapes agree, classes are in 0..num_labels-1, and boxes are fractions of the image."""
    for index, label in enumerate(labels):
        classes, boxes = label["class_labels"], label["boxes"]
        if classes.ndim != 1 or boxes.shape != (len(classes), 4):
            raise ValueError(
                f"labels[{index}] must have class_labels (n,) and boxes (n, 4), got shapes {tuple(classes.shape)} and "
                f"{tuple(boxes.shape)}."
            )
    classes = torch.cat([label["class_labels"] for label in labels])
    boxes = torch.cat([label["boxes"] for label in labels])
    if not classes.numel():
        return
    if classes.min() < 0 or classes.max() >= num_labels:
        raise ValueError(
            f"class_labels hold {classes.min().item()} to {classes.max().item()}, but the model has {num_labels} "
            "labels: number them 0 to num_labels - 1 (COCO's category ids have gaps), or set num_labels."
        )
    inside = (boxes >= -_ROUNDING) & (boxes <= 1 + _ROUNDING)  # False for NaN
    if not inside.all():
        box = boxes[~inside.all(-1)][0].tolist()
        raise ValueError(f"boxes must be (centre x, centre y, width, height) as fractions of the image, got {box}.")


def _mean_over_processes(counts: list[int], device: torch.device) -> list[float]:
    """Return the mean of each count over the processes of distributed training, at least 1.

    All processes must call this at every step. The mean of transformers divides by the number of processes twice.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        totals = torch.tensor(counts, dtype=torch.float32, device=device)
        torch.distributed.all_reduce(totals)
        return (totals / torch.distributed.get_world_size()).clamp(min=1).tolist()
    return [max(float(count), 1.0) for count in counts]


def _layer_suffixes(layers: int) -> list[str]:
    """Return the suffixes of the losses of decoder layers; the last layer has none."""
    return [*(f"_{i}" for i in range(layers - 1)), ""]


def _denoising_indices(denoising: DenoisingQueries, labels: Labels) -> Indices:
    """Return, per image, the positive denoising queries and the box of each."""
    starts = torch.arange(denoising.num_groups)[:, None] * 2 * denoising.group_size
    boxes = [torch.arange(len(label["class_labels"])) for label in labels]
    return [((starts + box).flatten(), box.repeat(denoising.num_groups)) for box in boxes]


def _set_loss(
    criterion: DeformableDetrImageLoss,
    logits: Tensor,
    boxes: Tensor,
    labels: Labels,
    indices: Indices,
    num_boxes: float,
    suffix: str,
) -> dict[str, Tensor]:
    """Return the losses of one layer's queries, divided by `num_boxes`, with the suffix in their names."""
    parts = criterion.get_loss("labels", {"logits": logits}, labels, indices, num_boxes)
    # Image by image: the criterion's IoU takes all pairs of boxes and keeps the diagonal.
    images = [
        criterion.get_loss("boxes", {"pred_boxes": boxes[i : i + 1]}, labels[i : i + 1], indices[i : i + 1], num_boxes)
        for i in range(len(labels))
    ]
    parts.update({name: torch.stack([image[name] for image in images]).sum() for name in images[0]})
    return {f"{name}{suffix}": value for name, value in parts.items()}
