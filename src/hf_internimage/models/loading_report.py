# SPDX-License-Identifier: MIT
"""One line about the weights of a checkpoint that a model with other sizes could not take."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from transformers.utils import logging

logger = logging.get_logger(__name__)


class LoadingReportMixin:
    """Say after loading with `ignore_mismatched_sizes` which weights beside the classifier's are new."""

    # The modules that a user expects to be made anew for other labels.
    _classifier_modules: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load a model as every model of transformers; a warning names new weights beside those of the classifier."""
        parent: Any = super()
        model, info = parent.from_pretrained(*args, output_loading_info=True, **kwargs)
        modules = mismatched_modules(info)
        if not set(modules) <= set(cls._classifier_modules):
            logger.warning(
                f"{cls.__name__}: the checkpoint has other sizes (of other num_labels, or fields that were changed). "
                f"Newly initialised are {', '.join(modules)}; train them before use."
            )
        return (model, info) if output_loading_info else model


def mismatched_modules(info: Mapping[str, Collection[Any]]) -> list[str]:
    """Return the names of the modules whose weights have other shapes than the checkpoint's, without indices.

    Args:
        info: the loading info of `from_pretrained`.
    """
    names = (key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    parts = ([part for part in name.split(".")[:-1] if not part.isdigit()] for name in names)
    return sorted({".".join(module) for module in parts})


__all__ = ["LoadingReportMixin", "mismatched_modules"]
