# SPDX-License-Identifier: Apache-2.0
"""What `pip install .` calls (PEP 517): the package with its compiled module as a wheel, and the sources as an sdist.

The standard library, CMake and what tools/install-deps.sh installs are all that it takes; nothing is fetched. The module is
built in the folder that DRAFTFLOW_BUILD names; else in build/, where that is an optimised build for this Python; else in
build/wheel.
"""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, Dict, List, Optional

ROOT = Path(__file__).resolve().parent.parent
NAME = "draftflow"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
KINDS = (".py", ".pyi", ".typed")  # of the package's files


def get_requires_for_build_wheel(config_settings: Optional[Dict[str, Any]] = None) -> List[str]:
    return []


def get_requires_for_build_sdist(config_settings: Optional[Dict[str, Any]] = None) -> List[str]:
    return []


def build_wheel(
    wheel_directory: str, config_settings: Optional[Dict[str, Any]] = None, metadata_directory: Optional[str] = None
) -> str:
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    tag = f"{python}-{python}-{re.sub('[^0-9a-zA-Z]', '_', sysconfig.get_platform())}"
    contents = {path.relative_to(ROOT / "python").as_posix(): path.read_bytes() for path in _package_files()}
    contents[f"{NAME}/_core{SUFFIX}"] = _stripped(_built_module())
    info = f"{NAME}-{_version()}.dist-info"
    contents[f"{info}/METADATA"] = _metadata().encode()
    contents[f"{info}/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    contents[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: {NAME}\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in contents.items())
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    made = f"{NAME}-{_version()}-{tag}.whl"
    with zipfile.ZipFile(Path(wheel_directory) / made, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, time.gmtime(max(_time(), 315532800))[:6])
            entry.external_attr = (0o100755 if name.endswith(".so") else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(entry, content)
    return made


def build_sdist(sdist_directory: str, config_settings: Optional[Dict[str, Any]] = None) -> str:
    base = f"{NAME}-{_version()}"
    with tarfile.open(Path(sdist_directory) / f"{base}.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for path in _sources():
            archive.add(ROOT / path, f"{base}/{path}", recursive=False)
        entry = tarfile.TarInfo(f"{base}/PKG-INFO")
        content = _metadata().encode()
        entry.size, entry.mtime = len(content), int(_time())
        archive.addfile(entry, BytesIO(content))
    return f"{base}.tar.gz"


def _version() -> str:
    found = re.search(r"project\(draftflow VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())
    if found is None:
        raise RuntimeError("CMakeLists.txt names no version: project(draftflow VERSION ...) is expected")
    return found.group(1)


def _metadata() -> str:
    return f"""Metadata-Version: 2.1
Name: {NAME}
Version: {_version()}
Summary: Hidden states from a target model to those who train its draft, each sample exactly once
License: Apache-2.0
Requires-Python: >=3.9
Provides-Extra: torch
Requires-Dist: torch >=1.13; extra == 'torch'
Description-Content-Type: text/markdown

A feature store, a ledger and a loader for training speculative-decoding draft models. The compiled module is linked to the
libraries of the system that it was built on (SQLite, libpq, OpenSSL, libsodium ...): build it where it will run.
"""


def _time() -> float:
    return float(os.environ.get("SOURCE_DATE_EPOCH", 1577836800))


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _package_files() -> List[Path]:
    return sorted(path for path in (ROOT / "python" / NAME).rglob("*") if path.suffix in KINDS or path.name == "py.typed")


def _sources() -> List[str]:
    """What git has, or would take; without git, as from an unpacked sdist, all that is not made."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
        return sorted(name for name in os.fsdecode(listed).split("\0") if name and (ROOT / name).is_file())
    made = {"build", "out", ".cache", "PKG-INFO"}
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in files if path.parts[0] not in made and "__pycache__" not in path.parts)


# --- the compiled module


def _built_module() -> Path:
    named = os.environ.get("DRAFTFLOW_BUILD")
    if named:
        folder = Path(named).resolve()
        why_not = _unfit(folder)
        if why_not:
            raise RuntimeError(f"DRAFTFLOW_BUILD is {folder}, and {why_not}: unset it to build in a folder that fits")
    elif not _unfit(ROOT / "build"):
        folder = ROOT / "build"
    else:
        folder = ROOT / "build" / "wheel"
        if _unfit(folder):
            python = getattr(sys, "_base_executable", sys.executable)  # pip's own environment may be gone at the next build
            _run("cmake", "--preset", "release", "-B", folder, "-DDRAFTFLOW_TORCH=OFF", f"-DDRAFTFLOW_PYTHON={python}")
    _run("cmake", "--build", folder, "--target", "draftflow_python")
    module = folder / "python" / NAME / f"_core{SUFFIX}"
    if not module.exists():
        raise RuntimeError(f"{folder} was built for another Python: {module.name} is not in {module.parent}")
    return module


def _unfit(folder: Path) -> str:
    """Why a folder cannot be built in for this wheel; empty if it can."""
    cache = folder / "CMakeCache.txt"
    if not cache.exists():
        return "it is no build folder of CMake"
    kept = dict(re.findall(r"^(\w+):\w+=(.*)$", cache.read_text(), re.MULTILINE))
    if Path(kept.get("CMAKE_HOME_DIRECTORY", "")).resolve() != ROOT:
        return f"it is a build of {kept.get('CMAKE_HOME_DIRECTORY')}, not of {ROOT}"
    optimised = kept.get("CMAKE_BUILD_TYPE") in ("Release", "RelWithDebInfo")
    if not optimised or kept.get("DRAFTFLOW_SANITIZE") or kept.get("CMAKE_CXX_FLAGS"):
        return "it is no optimised build without sanitizers (preset release)"
    python = kept.get("DRAFTFLOW_PYTHON", "")
    try:
        command = [python, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"]
        suffix = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        suffix = ""
    return "" if suffix == SUFFIX else f"it is for {python}, whose modules are not this Python's"


def _run(*command: object) -> None:
    try:
        subprocess.run([str(part) for part in command], cwd=ROOT, check=True)
    except FileNotFoundError:
        raise RuntimeError(f"{command[0]} is not installed: tools/install-deps.sh installs what the build needs") from None
    except subprocess.CalledProcessError as failed:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {failed.returncode}; its output is above") from None


def _stripped(module: Path) -> bytes:
    if shutil.which("strip") is None:
        return module.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / module.name
        _run("strip", "--strip-unneeded", "-o", made, module)
        return made.read_bytes()
