# SPDX-License-Identifier: MIT
"""One module for each backend of an operator, imported by the registry when it is needed."""
