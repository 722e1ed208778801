"""What a run has finished so far, on disk: the next run takes it from there, should this one not come to its end."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fxslim.graph.errors import LocalError
from fxslim.outputs import replace_whole, verify_manifest, write_manifest

__all__ = ["Stages"]


class Stages:
    """Folders by key in `folder`, each whole and with hashes, or not there. Keys say all that a stage depends on, so
    that what is found is what would be made again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str) -> Path | None:
        """The folder of a stage that was finished. A damaged one is removed: it is made again."""
        place = self.folder / key
        if not place.is_dir():
            return None
        if verify_manifest(place):
            shutil.rmtree(place, ignore_errors=True)
            return None
        return place

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for files that no later run needs. A killed run leaves it, and the next one removes it.

        Raises:
            InputError: it cannot be made.
        """
        self.tidy()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            made = tempfile.TemporaryDirectory(prefix=".scratch-", dir=self.folder, ignore_cleanup_errors=True)
        except OSError as error:
            raise self._unwritable(error) from error
        with made as path:
            yield Path(path)

    def steps(self, key: str) -> Path:
        """The folder for the steps of a stage that is not finished: files, each whole or not there."""
        return self.folder / f"{key}.steps"

    @contextmanager
    def keep(self, key: str) -> Iterator[Path]:
        """An empty folder to write the stage to; it counts once the block has ended well.

        Raises:
            InputError: it cannot be written.
        """
        draft = self.folder / f".{key}.{secrets.token_hex(4)}"
        try:
            draft.mkdir(parents=True)
            try:
                yield draft
                write_manifest(draft, {})
                shutil.rmtree(self.folder / key, ignore_errors=True)
                replace_whole(draft, self.folder / key)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> LocalError:
        reason = getattr(error, "strerror", None) or error
        return LocalError(f"what the run has found so far cannot be written: {reason}", at=str(self.folder))

    def names(self) -> list[str]:
        """Keys of the stages that are there."""
        if not self.folder.is_dir():
            return []
        return sorted(f.name for f in self.folder.iterdir() if f.is_dir() and not f.name.startswith("."))

    def tidy(self) -> None:
        """Removes drafts that a killed run left, and the folder where nothing else is in it."""
        if not self.folder.is_dir():
            return
        for draft in self.folder.glob(".*"):
            shutil.rmtree(draft, ignore_errors=True)
        if not self.names():
            self.close()

    def close(self) -> None:
        """Removes everything: the result is there."""
        shutil.rmtree(self.folder, ignore_errors=True)
