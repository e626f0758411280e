# SPDX-License-Identifier: MIT
"""Measure published checkpoints as the authors did, and compare with the scores that they report.

`protocols` says which scores can be measured and on which data, `files` fetches and checks the authors' files, `data`
finds the data sets, `measure` converts and evaluates, and `command` is the command `hf-internimage reproduce`.
"""

from .measure import Settings, reproduce
from .protocols import Protocol, find_protocol, protocols

__all__ = ["Protocol", "Settings", "find_protocol", "protocols", "reproduce"]
