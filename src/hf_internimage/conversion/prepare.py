# SPDX-License-Identifier: MIT
"""From a checkpoint file of any system to a model with its weights and an image processor; writes nothing."""

from collections.abc import Mapping

from ..tensors import find_state_dict
from .files import naming, read_checkpoint
from .prepare_classifier import prepare_classifier
from .prepare_common import Options, Prepared
from .prepare_dense import prepare_dense
from .systems import find_system


def prepare(options: Options) -> Prepared:
    """The model of a checkpoint file, whichever system it belongs to.

    Raises:
        ValueError: for a file that cannot be read or does not fit, and for options that cannot work.
        ImportError: if the model needs a package that is not installed.
    """
    with naming(options.source):
        loaded = read_checkpoint(options.source)
        state_dict = find_state_dict(loaded)
        system = find_system(state_dict)
    if system.name == "classification":
        return prepare_classifier(options, system, state_dict)
    entries = loaded if isinstance(loaded, Mapping) else {}
    others = {name: value for name, value in entries.items() if name not in {*state_dict, "model", "state_dict"}}
    return prepare_dense(options, system, state_dict, others)


__all__ = ["prepare"]
