# SPDX-License-Identifier: MIT
"""Options of tiny models that between them have every part of an InternImage."""

# One configuration for each option, small; the golden models cover the released combinations.
OPTIONS = {
    "t": {},
    "b": {"post_norm": True, "layer_scale": 0.5},
    "l": {"layer_scale": 0.5, "offset_scale": 2.0},
    "h": {
        "res_post_norm": True,
        "level2_post_norm": True,
        "level2_post_norm_block_ids": [1],
        "dw_kernel_size": 5,
        "center_feature_scale": True,
        "use_clip_projector": True,
    },
    "g": {
        "post_norm": True,
        "level2_post_norm": True,
        "level2_post_norm_block_ids": [0, 1],
        "center_feature_scale": True,
        "use_clip_projector": True,
    },
    "batch_norm": {"norm_layer": "BN"},
    "silu": {"act_layer": "SiLU", "mlp_ratio": 1.5},
    "relu": {"act_layer": "ReLU", "cls_scale": 0.75},
    "remove_center": {"remove_center": True},
    "res_post_norm_and_layer_scale": {"res_post_norm": True, "layer_scale": 0.5},
}
