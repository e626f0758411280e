# SPDX-License-Identifier: MIT
"""Class names and head maps as text files: what a user adds to the tensors."""

import json


def parse_indices(text: str) -> list[int]:
    """The integers of a head map, one a line, blank lines at the end allowed.

    Raises:
        ValueError: for a line that is no integer.
    """
    indices = []
    for number, line in enumerate(text.rstrip().splitlines(), start=1):
        try:
            indices.append(int(line))
        except ValueError:
            raise ValueError(f"Line {number} is {line[:40]!r}, expected one integer on each line.") from None
    return indices


def parse_labels(text: str, is_json: bool) -> list[str]:
    """Class names in the order of the outputs: one a line, or a JSON list of names or object {"0": name, ...}.

    Raises:
        ValueError: for invalid JSON, an entry that is no name, or ids that are not 0 to n-1.
    """
    if not is_json:
        names: list[object] = [line.strip() for line in text.rstrip().splitlines()]
    else:
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"Invalid JSON ({error}); give a list of names or an object from id to name.") from None
        if isinstance(data, dict):
            ids = [str(index) for index in range(len(data))]
            if set(data) != set(ids):
                raise ValueError(f"The {len(data)} ids are not 0 to {len(data) - 1}; give one name for each class.")
            data = [data[index] for index in ids]
        if not isinstance(data, list):
            raise ValueError(f"Found a {type(data).__name__}, expected a list of names or an object from id to name.")
        names = data
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise ValueError(f"The name of class {index} is {name!r}, expected text.")
    return [str(name) for name in names]


__all__ = ["parse_indices", "parse_labels"]
