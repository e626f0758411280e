# SPDX-License-Identifier: MIT
"""Files of checkpoints: their hashes, and fetching them from the authors' repository (a Hub on loopback)."""

import hashlib

import pytest
from support.loading import run_python
from support.loopback_hub import loopback_hub  # noqa: F401

from hf_internimage.reproduction.files import fetch_file, read_file

NAME = "internimage_t_1k_224"
CONTENT = b"\0weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FETCH = f"""
import sys
from hf_internimage.reproduction.files import cached_file, fetch_file

print(cached_file("{NAME}"))
file = fetch_file("{NAME}")
print(file.sha256, file.expected_sha256, file.path == cached_file("{NAME}"))
"""


def test_hashes(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(CONTENT)
    file = read_file(path)
    assert (file.sha256, file.expected_sha256) == (SHA256, None)
    assert file.describe() == f"{path}, SHA-256 {SHA256} (not compared: no hash is known)"
    assert read_file(path, SHA256.upper()).describe().endswith("(as expected)")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=rf"a\.pth: has the SHA-256 \w+, expected {SHA256}; download it again"):
        read_file(path, SHA256)
    with pytest.raises(ValueError, match="is not a file"):
        read_file(tmp_path)


def test_fetching_without_a_network_says_what_to_do():
    with pytest.raises(ValueError, match=r"internimage_t_1k_224\.pth cannot be fetched .*give it by --file"):
        fetch_file(NAME)


@pytest.mark.slow
def test_fetched_files_have_the_hash_that_the_hub_states(loopback_hub, tmp_path):  # noqa: F811
    loopback_hub.add("OpenGVLab/InternImage", {f"{NAME}.pth": CONTENT})
    environment = loopback_hub.environment(tmp_path / "home")
    assert run_python(FETCH, **environment).split() == ["None", SHA256, SHA256, "True"]
    # What lies in the cache is damaged: the Hub's hash tells.
    (blob,) = (tmp_path / "home" / "hub").glob(f"**/blobs/{SHA256}")
    blob.write_bytes(CONTENT[:-1] + b"x")
    printed = run_python(
        f"""
        from hf_internimage.reproduction.files import fetch_file
        try:
            fetch_file("{NAME}")
        except ValueError as error:
            print(error)
        """,
        **environment,
    )
    assert f"expected {SHA256}; download it again" in printed
