# SPDX-License-Identifier: MIT
"""Find the sources of packages, and import single modules of the library, without torch."""

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

LIBRARY = "hf_internimage"


def source_folder(package: str) -> Path:
    """Return the folder of a package, which is not imported.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(spec.origin).parent


def import_alone(name: str) -> ModuleType:
    """Import a module or package of the library without the library itself, whose import takes seconds.

    Args:
        name: within the library; it imports the standard library and its own modules alone.
    """
    if LIBRARY in sys.modules:
        return import_module(f"{LIBRARY}.{name}")
    alone = f"{__package__}.{LIBRARY}_{name}"
    if alone not in sys.modules:
        path = source_folder(LIBRARY) / name
        folders = [str(path)] if path.is_dir() else None
        file = path / "__init__.py" if folders else path.with_suffix(".py")
        spec = spec_from_file_location(alone, file, submodule_search_locations=folders)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"No module named '{LIBRARY}.{name}'", name=f"{LIBRARY}.{name}")
        module = sys.modules[alone] = module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[alone]


__all__ = ["LIBRARY", "import_alone", "source_folder"]
