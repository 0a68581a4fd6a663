#!/usr/bin/env python
"""Fetches the Delta tables that the delta-rs project tests with: written over the years by Spark, Databricks, delta-rs
and others, Delta's own golden tables among them. They are in the source package of `deltalake`, and in no other.

    public_tables.py FOLDER      makes FOLDER with one table a subfolder

pip downloads a source package only together with its metadata, for which it would build a Rust crate. The build
backend that it finds here instead says no more than the name.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "1.6.6"
SHA256 = "91864d97adb429fa8b8748b4f68d69adab3d0417ffa9f100bdb85805890c997f"
INSIDE = f"deltalake-{VERSION}/crates/test/tests/data/"

BACKEND = f'''
import os

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    name = "deltalake-{VERSION}.dist-info"
    os.mkdir(os.path.join(folder, name))
    with open(os.path.join(folder, name, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: deltalake\\nVersion: {VERSION}\\n")
    return name
'''


def main(place):
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        # The backend that the package's pyproject.toml names.
        (scratch / "maturin.py").write_text(BACKEND)
        wanted = scratch / "wanted.txt"
        wanted.write_text(f"deltalake=={VERSION} --hash=sha256:{SHA256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        pip += ["--no-binary", "deltalake", "--no-build-isolation", "--require-hashes", "-r", wanted, "-d", scratch]
        subprocess.run(pip, check=True, timeout=600, env={**os.environ, "PYTHONPATH": str(scratch)})
        with tarfile.open(scratch / f"deltalake-{VERSION}.tar.gz") as package:
            shutil.rmtree(place, ignore_errors=True)
            for member in package:
                if member.isfile() and member.name.startswith(INSIDE):
                    file = place / member.name.removeprefix(INSIDE)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(package.extractfile(member).read())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
