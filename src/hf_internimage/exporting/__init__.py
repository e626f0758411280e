# SPDX-License-Identifier: MIT
"""Export models to files of other runtimes, compared with the model before they appear."""

from .errors import ExportError
from .main import TARGETS, export
from .report import Accuracy, Comparison, ExportReport

__all__ = ["TARGETS", "Accuracy", "Comparison", "ExportError", "ExportReport", "export"]
