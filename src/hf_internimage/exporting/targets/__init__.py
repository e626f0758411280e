# SPDX-License-Identifier: MIT
"""One module a target, with `write(system, folder, options) -> file`, `load(file) -> Run` and `describe(file)`."""
