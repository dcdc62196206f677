"""A training on another machine: its progress comes back as it goes on, and the bundle with the result.

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
from forge_sweep.workers import Limits, Say, Task


@dataclass(frozen=True)
class Saved:
    """Message of a training whose progress the driver is to keep."""

    content: bytes


@dataclass(frozen=True)
class Relayed:
    """A checkpoint that the driver keeps; see `training.Checkpoint`.

    Attributes:
        say: reaches the driver.
        content: what it had when the training was sent off.
    """

    say: Say
    content: bytes | None

    def load(self) -> bytes | None:
        """What an earlier attempt saved."""
        return self.content

    def save(self, content: bytes) -> None:
        """Send it to the driver.

        Raises:
            OSError: the driver cannot keep it.
        """
        if error := self.say(Saved(content)):
            raise OSError(error)


@dataclass(frozen=True, eq=False)
class Shipped:
    """An order that is carried out below a temporary folder of whatever machine it comes to.

    Attributes:
        order: the folder in it is the driver's, and it has no checkpoint.
        progress: what its checkpoint held.
    """

    order: Order
    progress: bytes | None

    def __call__(self, say: Say) -> tuple[Outcome, bytes]:
        """Train; gives the outcome, and the bundle as an archive where one is to be kept."""
        keep = self.order.keep
        with tempfile.TemporaryDirectory(prefix="forge-sweep-") as name:
            kept = None if keep is None else Path(name) / keep.name
            order = dataclasses.replace(self.order, checkpoint=Relayed(say, self.progress), keep=kept)
            return order(say), b"" if kept is None else pack(kept)


def call(
    run: Callable[[Task[Any], Say, Limits], Any], order: Order, relay: Callable[[Any], Any], limits: Limits
) -> Outcome:
    """Let a worker on any machine carry out an order; progress and bundle are put where the order wants them.

    Args:
        run: `Worker.call` of the worker.
        order: what to carry out.
        relay: called with its messages.
        limits: of the training.

    Raises:
        BundleError: what came back is no bundle.
    """
    checkpoint = order.checkpoint
    assert checkpoint is not None

    def heard(message: Any) -> Any:
        if not isinstance(message, Saved):
            return relay(message)
        try:
            checkpoint.save(message.content)
        except OSError as error:
            return str(error)
        return None

    unkept = dataclasses.replace(order, checkpoint=None)
    outcome: Outcome
    outcome, archive = run(Shipped(unkept, checkpoint.load()), heard, limits)
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
