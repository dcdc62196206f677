"""The folder: strict JSON, the manifest, and a rename that leaves a whole bundle or none."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from forge_sweep.errors import BundleError

MANIFEST = "manifest.json"


def replace_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a hidden sibling, sync it to disk and rename it to ``folder``, where only a bundle may stand.

    A process that dies leaves at most siblings named ``.<name>.<random>.tmp`` (unfinished) or ``.old`` (replaced).
    """
    folder = folder.resolve()  # a link stays, and what it leads to is replaced
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} exists and is not a bundle", hint="save to a folder that does not exist yet")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unique = f".{folder.name}.{secrets.token_hex(4)}"
    temporary, old = folder.with_name(f"{unique}.tmp"), folder.with_name(f"{unique}.old")
    temporary.mkdir()
    try:
        write(temporary)
        for path in [*temporary.iterdir(), temporary]:
            sync(path)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: NaN and Infinity are refused."""
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BundleError(f"{path.name} cannot be written as plain JSON: {error}") from error
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value of a JSON file; a BundleError for a key twice in one object, NaN and Infinity as well."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("an object has a key twice")
        return found

    def refuse_constant(word: str) -> Any:
        raise ValueError(f"it holds {word}")

    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=distinct, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}") from error


def write_manifest(folder: Path) -> None:
    """List every file in the folder with its digest."""
    digests = {path.name: sha256(path) for path in folder.iterdir()}
    (folder / MANIFEST).write_text(manifest_text(digests), encoding="utf-8")


def check_manifest(folder: Path) -> set[str]:
    """Names of the files in the folder but the manifest: all of them regular, listed and unchanged."""
    try:  # reading a link, folder, pipe or device could leave the folder, or never end
        with os.scandir(folder) as found:
            irregular = [each.name for each in found if not stat.S_ISREG(each.stat(follow_symlinks=False).st_mode)]
    except OSError as error:
        raise BundleError(f"{folder} cannot be read: {error.strerror}", hint="give the folder of a bundle") from error
    refuse(folder, {"not a regular file": irregular})
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    digests = read_manifest(folder)
    changed = [name for name in present & digests.keys() if sha256(folder / name) != digests[name]]
    problems = {"missing": digests.keys() - present, "unexpected": present - digests.keys(), "changed": changed}
    refuse(folder, problems)
    return present


def read_manifest(folder: Path) -> dict[str, str]:
    """The digest of every listed file; the text has to be exactly what `write_manifest` writes."""
    path = folder / MANIFEST
    refuse(folder, {"missing": [] if path.exists() else [MANIFEST]})
    digests = read_json(path)
    if not isinstance(digests, dict):
        raise BundleError(f"{path} is not a table of file names and digests")
    for name, digest in digests.items():
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
            raise BundleError(f"{path} names {name!r}, which is not a plain file name")
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise BundleError(f"{path} gives {digest!r} for {name}, which is not a SHA-256 in lower-case hex")
    refuse(folder, {"changed": [MANIFEST] if path.read_bytes() != manifest_text(digests).encode() else []})
    return digests


def manifest_text(digests: dict[str, str]) -> str:
    """The one way to write a manifest."""
    return json.dumps(digests, indent=1, sort_keys=True) + "\n"


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse(folder: Path, problems: Mapping[str, Collection[str]]) -> None:
    """Raise for problems: file names by what is wrong with them."""
    found = [f"{problem}: {', '.join(sorted(names))}" for problem, names in problems.items() if names]
    if found:
        raise BundleError(
            f"{folder} is not as it was saved; {'; '.join(found)}",
            hint="copy or download the whole folder again, and keep other files out of it",
        )
