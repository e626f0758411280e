# SPDX-License-Identifier: MIT
"""The error of exports."""

STATIC_ADVICE = " A file for one size may work: --static."


class ExportError(ValueError):
    """A model cannot be exported as asked, or the file does not compute what the model does."""


__all__ = ["STATIC_ADVICE", "ExportError"]
