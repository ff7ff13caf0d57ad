# SPDX-License-Identifier: Apache-2.0
"""`pip install .` without any index, from what is built already; and what the wheel and the sdist hold."""

import base64
import csv
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import draftflow
from stage import CHECKOUT

BUILD = Path(draftflow.__file__).absolute().parents[2]
PROGRAM = """
import sys, torch, draftflow
with draftflow.Store.create(sys.argv[1] + "/store") as store, draftflow.Ledger.open(sys.argv[1] + "/ledger.sqlite3") as ledger:
    ref = store.put({"x": torch.arange(3)}, "s")
    ledger.commit_samples([ref])
    assert store.read(ledger.get_committed("s"))["x"].tolist() == [0, 1, 2]
    assert draftflow.Stream and draftflow.capture
print(draftflow.__file__)
"""


@pytest.fixture
def backend(monkeypatch):
    if not (BUILD / "CMakeCache.txt").exists():
        pytest.skip(f"the package is not used from a build folder: {BUILD} is none")
    monkeypatch.setenv("DRAFTFLOW_BUILD", str(BUILD))
    spec = importlib.util.spec_from_file_location("build_backend", CHECKOUT / "python" / "build_backend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pip_installs_it_into_a_fresh_environment(backend, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_INDEX_URL")}
    run = lambda *command: subprocess.run(  # noqa: E731
        [str(part) for part in command], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    made = run(sys.executable, "-m", "venv", "--system-site-packages", "fresh")
    assert made.returncode == 0, made.stdout + made.stderr
    python = tmp_path / "fresh" / "bin" / "python"
    before = set(path for path in CHECKOUT.iterdir())
    installed = run(python, "-m", "pip", "install", "--no-index", "--disable-pip-version-check", CHECKOUT)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert set(path for path in CHECKOUT.iterdir()) == before
    used = run(python, "-c", PROGRAM, tmp_path)
    assert used.returncode == 0, used.stderr
    assert Path(used.stdout.strip()).is_relative_to(tmp_path / "fresh")
    shown = run(python, "-m", "pip", "show", "-f", "draftflow").stdout
    assert f"Version: {draftflow.__version__}" in shown and "draftflow/_core.pyi" in shown and "draftflow/py.typed" in shown


def test_a_wheel_holds_the_package_and_says_so(backend, tmp_path):
    name = backend.build_wheel(str(tmp_path))
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert name == f"draftflow-{draftflow.__version__}-{tag}-{tag}-linux_{os.uname().machine}.whl"
    with zipfile.ZipFile(tmp_path / name) as wheel:
        files = {entry: wheel.read(entry) for entry in wheel.namelist()}
    info = f"draftflow-{draftflow.__version__}.dist-info"
    rows = {path: (digest, size) for path, digest, size in csv.reader(files[f"{info}/RECORD"].decode().splitlines())}
    assert set(rows) == set(files) and rows.pop(f"{info}/RECORD") == ("", "")
    for path, (digest, size) in rows.items():
        wanted = base64.urlsafe_b64encode(hashlib.sha256(files[path]).digest()).rstrip(b"=").decode()
        assert (digest, size) == (f"sha256={wanted}", str(len(files[path])))
    sources = {path.relative_to(CHECKOUT / "python").as_posix() for path in (CHECKOUT / "python" / "draftflow").rglob("*.py*")}
    sources = {path for path in sources if "__pycache__" not in path}
    sources |= {"draftflow/py.typed", f"draftflow/_core{backend.SUFFIX}"}
    assert {path for path in files if not path.startswith(info)} == sources
    module = files[f"draftflow/_core{backend.SUFFIX}"]
    assert module[:4] == b"\x7fELF" and len(module) < Path(draftflow._core.__file__).stat().st_size / 2  # stripped
    assert b"Name: draftflow\n" in files[f"{info}/METADATA"] and f"Tag: {tag}-".encode() in files[f"{info}/WHEEL"]
    (tmp_path / "again").mkdir()
    assert (tmp_path / "again" / backend.build_wheel(str(tmp_path / "again"))).read_bytes() == (tmp_path / name).read_bytes()


def test_an_sdist_holds_the_sources(backend, tmp_path):
    name = backend.build_sdist(str(tmp_path))
    base = name[: -len(".tar.gz")]
    assert base == f"draftflow-{draftflow.__version__}"
    with tarfile.open(tmp_path / name) as archive:
        names = set(archive.getnames())
        wanted = ["CMakeLists.txt", "CMakePresets.json", "LICENSE", "PKG-INFO", "pyproject.toml", "python/build_backend.py"]
        wanted += ["python/draftflow/_core.pyi", "src/python/module.cc", "cmake/room.cmake"]
        assert {f"{base}/{path}" for path in wanted} <= names
        made = tuple(f"{base}/{folder}/" for folder in ("build", "out", ".git", ".cache"))
        assert not any(path.startswith(made) or "__pycache__" in path for path in names)
        assert archive.extractfile(f"{base}/PKG-INFO").read() == backend._metadata().encode()


def test_a_build_folder_that_does_not_fit_is_refused(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("DRAFTFLOW_BUILD", str(tmp_path))
    with pytest.raises(RuntimeError, match=f"DRAFTFLOW_BUILD is {tmp_path}, and it is no build folder of CMake: unset it"):
        backend.build_wheel(str(tmp_path))
    cache = (BUILD / "CMakeCache.txt").read_text()
    for name, value, why in (
        ("CMAKE_HOME_DIRECTORY", "/elsewhere", "it is a build of /elsewhere, not of"),
        ("CMAKE_BUILD_TYPE", "Debug", "no optimised build"),
        ("DRAFTFLOW_SANITIZE", "address", "no optimised build"),
        ("CMAKE_CXX_FLAGS", "--coverage", "no optimised build"),
        ("DRAFTFLOW_PYTHON", "/bin/false", "it is for /bin/false, whose modules are not this Python's"),
        ("DRAFTFLOW_PYTHON", "/nowhere", "it is for /nowhere, whose modules are not this Python's"),
    ):
        changed, times = re.subn(rf"^({name}:\w+)=.*$", rf"\1={value}", cache, flags=re.MULTILINE)
        assert times == 1, name
        (tmp_path / "CMakeCache.txt").write_text(changed)
        with pytest.raises(RuntimeError, match=why):
            backend.build_wheel(str(tmp_path))
    assert list(tmp_path.glob("*.whl")) == []
