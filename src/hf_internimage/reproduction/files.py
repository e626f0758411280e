# SPDX-License-Identifier: MIT
"""Fetch the authors' files, and compare their hashes with those that the Hub states."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from ..checkpoints.systems import FILES_REPOSITORY

_BLOCK = 2**20  # bytes


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint's file.

    Attributes:
        path: of the file.
        sha256: its SHA-256, in hexadecimal digits.
        expected_sha256: the one it should have: the user's, or that which the Hub states; None if none is known.
    """

    path: Path
    sha256: str
    expected_sha256: str | None

    def describe(self) -> str:
        """Return one line with the hash, and what it was compared with."""
        checked = "as expected" if self.expected_sha256 else "not compared: no hash is known"
        return f"{self.path}, SHA-256 {self.sha256} ({checked})"


def read_file(path: Path, expected_sha256: str | None = None) -> CheckpointFile:
    """Return the file with its hash.

    Raises:
        ValueError: if there is no such file, or it has another hash than expected.
    """
    if not path.is_file():
        raise ValueError(f"{path}: is not a file; give the authors' checkpoint.")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    sha256 = digest.hexdigest()
    if expected_sha256 is not None and sha256 != expected_sha256.lower():
        raise ValueError(f"{path}: has the SHA-256 {sha256}, expected {expected_sha256.lower()}; download it again.")
    return CheckpointFile(path, sha256, expected_sha256)


def fetch_file(name: str, expected_sha256: str | None = None) -> CheckpointFile:
    """Download a checkpoint's file from the authors' repository, or take it from the cache.

    Args:
        name: of the checkpoint.
        expected_sha256: if not given, the one that the Hub states.

    Raises:
        ValueError: if it cannot be had, or has another hash than expected.
    """
    filename = f"{name}.pth"
    try:
        path = Path(hf_hub_download(FILES_REPOSITORY, filename))
        expected_sha256 = expected_sha256 or _stated_sha256(filename)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ValueError(
            f"{filename} cannot be fetched from {FILES_REPOSITORY} ({' '.join(str(error).split())}); download it "
            "elsewhere and give it by --file."
        ) from error
    return read_file(path, expected_sha256)


def cached_file(name: str) -> Path | None:
    """Return the path of a checkpoint's file in the cache of the Hub; None if it is not there."""
    path = try_to_load_from_cache(FILES_REPOSITORY, f"{name}.pth")
    return Path(path) if isinstance(path, str) else None


def _stated_sha256(filename: str) -> str | None:
    """Return the SHA-256 that the Hub states for a file; None if it does not, or cannot be asked."""
    try:
        (info,) = HfApi().get_paths_info(FILES_REPOSITORY, [filename])
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError):
        return None
    lfs = getattr(info, "lfs", None)
    return None if lfs is None else lfs.sha256


__all__ = ["CheckpointFile", "cached_file", "fetch_file", "read_file"]
