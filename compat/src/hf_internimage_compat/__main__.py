# SPDX-License-Identifier: MIT
"""Print the folder of the stand-ins. In PYTHONPATH, it comes before installed extensions."""

from hf_internimage_compat import EXTENSIONS

print(EXTENSIONS)
