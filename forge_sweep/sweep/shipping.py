"""A training on another machine: its files are written there, and the bundle comes back with the result.

Processes of this machine write to the driver's folders directly and need none of this.
"""

from __future__ import annotations

import dataclasses
import io
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_sweep.bundle.files import replace_whole
from forge_sweep.errors import BundleError
from forge_sweep.sweep.orders import Order, Outcome
from forge_sweep.workers import Limits, Say, Worker


@dataclass(frozen=True, eq=False)
class Shipped:
    """An order that is carried out below a temporary folder of whatever machine it comes to.

    Attributes:
        order: the paths in it are the driver's.
    """

    order: Order

    def __call__(self, say: Say) -> tuple[Outcome, bytes]:
        """Train; gives the outcome, and the bundle as an archive where one is to be kept."""
        keep = self.order.keep
        with tempfile.TemporaryDirectory(prefix="forge-sweep-") as name:
            folder = Path(name)
            kept = None if keep is None else folder / keep.name
            order = dataclasses.replace(self.order, checkpoint=folder / self.order.checkpoint.name, keep=kept)
            return order(say), b"" if kept is None else pack(kept)


def call(worker: Worker, order: Order, relay: Callable[[Any], Any], limits: Limits) -> Outcome:
    """Let a worker on any machine carry out an order; the bundle is put where the order wants it.

    Raises:
        BundleError: what came back is no bundle.
    """
    outcome, archive = worker.call(Shipped(order), relay, limits)
    if order.keep is not None:
        unpack(archive, order.keep)
    return outcome


def pack(folder: Path) -> bytes:
    """The files of a folder as a zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return file.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    """Write a packed bundle to a folder, whole or not at all. A bundle that stands there is replaced.

    Raises:
        BundleError: it is no such archive, or a name in it leads elsewhere.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(packed))
    except zipfile.BadZipFile as error:
        raise BundleError(f"what came back for {folder} is no archive: {error}") from error

    def write(temporary: Path) -> None:
        for name in archive.namelist():
            if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
                raise BundleError(f"the archive for {folder} holds {name!r}, which is no file of a bundle")
            (temporary / name).write_bytes(archive.read(name))

    with archive:
        replace_whole(folder, write)
