"""How coati-ext itself is installed here, and whether its start-up file will run."""

from __future__ import annotations

import site
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import List, Optional


def kind() -> str:
    """``wheel``, ``editable`` or ``checkout``."""
    if (Path(__file__).parent / "patches" / "__init__.py").is_file():
        return "wheel"
    try:
        distribution("coati-ext")
    except PackageNotFoundError:
        return "checkout"
    return "editable"


def site_directories() -> List[Path]:
    """The directories whose ``.pth`` files this Python reads at start."""
    if sys.flags.no_site:
        return []
    names = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    names += getattr(site, "getsitepackages", list)()
    if site.ENABLE_USER_SITE:
        names.append(site.getusersitepackages())
    return [Path(name) for name in dict.fromkeys(names)]


def startup_file() -> Optional[Path]:
    """The installed ``coati_ext.pth``, or ``None`` when no process will be armed by itself."""
    files = (directory / "coati_ext.pth" for directory in site_directories())
    return next((file for file in files if file.is_file()), None)


def version_of(package: str) -> Optional[str]:
    """The installed version of a distribution, without importing it."""
    try:
        return distribution(package).version
    except PackageNotFoundError:
        return None
