# SPDX-License-Identifier: MIT
"""Text files as editors on Windows write them: in UTF-8 with a mark at the start."""

import json

from hf_internimage.conversion.inputs import read_config, read_head_map, read_labels
from hf_internimage.conversion.systems import SYSTEMS


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "labels.txt").write_text("owl\r\neagle\r\n", encoding="utf-8-sig", newline="")
    (tmp_path / "labels.json").write_text(json.dumps(["owl", "eagle"]), encoding="utf-8-sig")
    (tmp_path / "map.txt").write_text("3\r\n1\r\n", encoding="utf-8-sig", newline="")
    (tmp_path / "config.json").write_text(json.dumps({"channels": 32}), encoding="utf-8-sig")
    assert read_labels(tmp_path / "labels.txt") == read_labels(tmp_path / "labels.json") == ["owl", "eagle"]
    assert read_head_map(tmp_path / "map.txt") == [3, 1]
    (system,) = (system for system in SYSTEMS if system.name == "classification")
    assert read_config(tmp_path / "config.json", system)[0] == {"channels": 32}
