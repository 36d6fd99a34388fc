"""Find the file that a list means, where its name is spelled otherwise. Torch-free."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path

from stagedkd.data.layouts.walk import VIDEO_SUFFIXES, exists, is_dir, is_hidden, join

DEEPEST = 100  # folders in a path that are looked at one by one


class Spelling:
    """Finds the file on the disk of a path in a list. The case of files and folders may differ (UCF101's folder
    HandstandPushups holds files v_HandStandPushups_*), and so may their form in Unicode, and the suffix of a video,
    since downloaders and converters write others.

    any_case: False where names differ in nothing but case, as YouTube's do.
    """

    def __init__(self, root: Path, *, any_case: bool = True) -> None:
        self.root, self.any_case, self.respelled = root, any_case, list[str]()
        self.names: dict[str, Mapping[str, str]] = {}

    def __call__(self, listed: str) -> str:
        """Return the path of the file, or `listed` if there is none. `respelled` gets the paths with another suffix."""
        found = self.find(listed)
        if _stem(found) != found and _suffix(found) != _suffix(listed):
            self.respelled.append(listed)
        return found

    def folder(self, listed: str) -> str:
        """Return the path of the folder, or `listed` if there is none: each part of it may be spelled otherwise."""
        if listed in ("", "/") or listed.count("/") > DEEPEST or is_dir(self.root / listed):
            return listed
        above, name = _parted(listed)
        above = self.folder(above)
        known = self._names(above)
        spelled = next((s for s in self._forms(_composed(name)) if s in known), None)
        found = join(above, known[spelled]) if spelled else listed
        return found if is_dir(self.root / found) else listed

    def find(self, listed: str) -> str:
        """Return the path of the file or folder, or `listed` if there is none."""
        above, name = _parted(listed)
        above = self.folder(above)
        known = self._names(above)
        composed = _composed(name)
        for spelled in (name, *self._forms(composed), *self._forms("*" + _stem(composed))):
            if spelled in known:
                return join(above, known[spelled])
        return listed

    def _forms(self, name: str) -> tuple[str, ...]:
        return (name, name.lower()) if self.any_case else (name,)

    def exists(self, listed: str) -> bool:
        """Return whether there is a file or a folder for a path of a list."""
        return bool(listed) and exists(self.root / self.find(listed))

    def notes(self) -> tuple[str, ...]:
        """Return a note on the files whose suffix is not that of the list."""
        if not self.respelled:
            return ()
        what = f"{len(self.respelled)} clips have another suffix on the disk than in the list"
        return (f"{what}, such as {self.respelled[0]}",)

    def _names(self, folder: str) -> Mapping[str, str]:
        """Return the names in a folder by their spellings; those of stems begin with a star."""
        if folder not in self.names:
            self.names[folder] = self._spellings(self.root / folder)
        return self.names[folder]

    def _spellings(self, path: Path) -> Mapping[str, str]:
        names = sorted((p.name for p in path.iterdir()), reverse=True) if is_dir(path) else []
        videos = [n for n in names if Path(n).suffix.lower() in VIDEO_SUFFIXES and not is_hidden(n)]
        exact = (
            {"*" + _stem(_composed(n)): n for n in videos} | {_composed(n): n for n in names} | {n: n for n in names}
        )
        return {key.lower(): n for key, n in exact.items()} | exact if self.any_case else exact


def _parted(path: str) -> tuple[str, str]:
    """Return the folder of a path, and its last part."""
    above, slash, name = path.rpartition("/")
    return above or slash * path.startswith("/"), name


def _composed(name: str) -> str:
    """Return a name in Unicode's composed form, since file systems and editors write the same name in two ways."""
    return unicodedata.normalize("NFC", name)


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _stem(name: str) -> str:
    return Path(name).stem if Path(name).suffix.lower() in VIDEO_SUFFIXES else name
