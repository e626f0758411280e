# SPDX-License-Identifier: MIT
"""From a checkpoint file of any system to a model with its weights and an image processor. Writes nothing."""

from .build import Prepared
from .inputs import Options, errors_prefixed_with, read_inputs
from .prepare_classifier import prepare_classifier
from .prepare_system import prepare_system


def prepare(options: Options) -> Prepared:
    """Read the files that the options name, and build the model of the checkpoint, of whichever system it is.

    Raises:
        ValueError: for a file that cannot be read or does not fit, and for options that cannot work. The message begins
            with the path of the file.
        ImportError: if the model needs a package that is not installed.
    """
    inputs = read_inputs(options)
    with errors_prefixed_with(options.source):
        if inputs.system.task == "image-classification":
            return prepare_classifier(inputs)
        return prepare_system(inputs)


__all__ = ["prepare"]
