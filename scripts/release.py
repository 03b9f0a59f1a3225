#!/usr/bin/env python3
"""What a release consists of, in dist/: sdist, wheel, krew's archive and manifest, and the chart where Helm is.

    python scripts/release.py [--out FOLDER]

Builds with hatchling in a virtual environment of its own, so pip must reach a package index. Publishes nothing.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
KREW = ROOT / "manifests" / "krew" / "greenthread.yaml"
NO_SUM = "0" * 64
LAUNCHER = """#!/usr/bin/env python3
import os, sys
if sys.version_info < (3, 11):
    sys.exit("error: kubectl greenthread needs Python 3.11 or newer as python3; this is " + sys.version.split()[0])
sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "lib"))
from kubectl_greenthread.main import main
main()
"""


def version() -> str:
    """Of the project."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def virtual_environment(folder: Path, *packages: str) -> Path:
    """The Python of a new one with these packages. Raises CalledProcessError."""
    run(sys.executable, "-m", "venv", str(folder))
    python = folder / "bin" / "python"
    if packages:
        run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
    return python


def run(*command: str, cwd: Path | None = None) -> str:
    """Its output. Raises CalledProcessError."""
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout


def build(python: Path, source: Path, out: Path, *targets: str) -> list[Path]:
    """sdist and wheel of a source folder; `python` has hatchling. What is in `out` afterwards."""
    chosen = [word for target in targets for word in ("-t", target)]
    run(str(python), "-m", "hatchling", "build", "-d", str(out), *chosen, cwd=source)
    return sorted(out.iterdir())


def krew_archive(python: Path, wheel: Path, out: Path) -> Path:
    """`kubectl-greenthread-VERSION.tar.gz`: a launcher, and beside it the wheel with what it needs; no timestamps.

    `python` has pip. Raises CalledProcessError.
    """
    archive = out / f"kubectl-greenthread-{version()}.tar.gz"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        run(*install, "--constraint", str(ROOT / "requirements.lock"), "--target", str(folder / "lib"), str(wheel))
        shutil.rmtree(folder / "lib" / "bin", ignore_errors=True)  # scripts that name this machine's Python
        for record in folder.glob("lib/*.dist-info/*"):
            if record.name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
                record.unlink()
        (folder / "kubectl-greenthread").write_text(LAUNCHER, encoding="utf-8")
        (folder / "kubectl-greenthread").chmod(0o755)
        shutil.copy(ROOT / "LICENSE", folder)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(folder.rglob("*")):
                tar.add(path, str(path.relative_to(folder)), recursive=False, filter=_anonymous)
    archive.write_bytes(gzip.compress(packed.getvalue(), mtime=0))
    return archive


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def krew_manifest(archive: Path) -> str:
    """The manifest with the archive's sum."""
    text = KREW.read_text(encoding="utf-8")
    assert text.count(NO_SUM) == 1, "manifests/krew/greenthread.yaml has no place for the sum"
    return text.replace(NO_SUM, hashlib.sha256(archive.read_bytes()).hexdigest())


def main() -> int:
    """Builds everything; says what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            python = virtual_environment(Path(temporary) / "venv", "hatchling")
            build(python, ROOT, out)
            archive = krew_archive(python, out / f"greenthread-{version()}-py3-none-any.whl", out)
        (out / "greenthread.krew.yaml").write_text(krew_manifest(archive), encoding="utf-8")
        if helm := shutil.which("helm"):
            run(helm, "package", str(ROOT / "manifests" / "charts" / "greenthread"), "--destination", str(out))
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(error.cmd[:4])} … failed:\n{error.stderr}", file=sys.stderr)
        return 1
    print("\n".join(str(file) for file in sorted(out.iterdir())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
