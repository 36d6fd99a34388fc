"""Find the file that a list means, where its name is spelled otherwise. Torch-free."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path

from stagedkd.data.layouts.walk import VIDEO_SUFFIXES, is_hidden, join


class Spelling:
    """Finds the file on the disk of a path in a list. Its case may differ (UCF101's folder HandstandPushups holds files
    v_HandStandPushups_*), and so may its suffix, since downloaders and converters write others.

    any_case: False where names differ in nothing but case, as YouTube's do.
    """

    def __init__(self, root: Path, *, any_case: bool = True) -> None:
        self.root, self.any_case, self.respelled = root, any_case, list[str]()
        self.folders: dict[str, Mapping[str, str]] = {}

    def __call__(self, listed: str) -> str:
        """Return the path of the file, or `listed` if there is none. `respelled` gets the paths with another suffix."""
        found = self._found(listed)
        if _stem(found) != found and _suffix(found) != _suffix(listed):
            self.respelled.append(listed)
        return found

    def _found(self, listed: str) -> str:
        """Return the path of the file, or `listed` if there is none."""
        folder, _, name = listed.rpartition("/")
        if folder not in self.folders:
            self.folders[folder] = self._names(self.root / folder)
        known = self.folders[folder]
        composed = _composed(name)
        stem = "*" + _stem(composed)
        others = (composed, composed.lower(), stem, stem.lower()) if self.any_case else (composed, stem)
        for spelled in (name, *others):
            if spelled in known:
                return join(folder, known[spelled])
        return listed

    def exists(self, listed: str) -> bool:
        """Return whether there is a file or a folder for a path of a list."""
        try:
            return bool(listed) and ((self.root / listed).exists() or (self.root / self._found(listed)).exists())
        except (OSError, ValueError):  # longer than a name can be, or with a zero byte
            return False

    def notes(self) -> tuple[str, ...]:
        """Return a note on the files whose suffix is not that of the list."""
        if not self.respelled:
            return ()
        what = f"{len(self.respelled)} clips have another suffix on the disk than in the list"
        return (f"{what}, such as {self.respelled[0]}",)

    def _names(self, path: Path) -> Mapping[str, str]:
        """Return the names in a folder by their spellings; those of stems begin with a star."""
        names = sorted((p.name for p in path.iterdir()), reverse=True) if path.is_dir() else []
        videos = [n for n in names if Path(n).suffix.lower() in VIDEO_SUFFIXES and not is_hidden(n)]
        exact = (
            {"*" + _stem(_composed(n)): n for n in videos} | {_composed(n): n for n in names} | {n: n for n in names}
        )
        return {key.lower(): n for key, n in exact.items()} | exact if self.any_case else exact


def _composed(name: str) -> str:
    """Return a name in Unicode's composed form, since file systems and editors write the same name in two ways."""
    return unicodedata.normalize("NFC", name)


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _stem(name: str) -> str:
    return Path(name).stem if Path(name).suffix.lower() in VIDEO_SUFFIXES else name
