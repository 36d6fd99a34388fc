"""Walk through a folder: every file below it is a video, a numbered picture, or left out for a reason. Torch-free."""

from __future__ import annotations

import errno
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stagedkd.data.address import is_plain
from stagedkd.data.layouts.modalities import FLOW, PARTNERS, are_modalities, beside_rgb, kind_of
from stagedkd.errors import DataError, UsageError

_VIDEOS = (
    ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m1v .m2t .m2ts .m2v .m4v .mjpeg .mjpg .mkv"
    " .mod .mov .mp4 .mpe .mpeg .mpg .mpv .mts .mxf .nut .ogg .ogm .ogv .qt .rm .rmvb .tod .ts .vob .webm .wmv .xvid"
    " .y4m"
)
_PICTURES = ".bmp .jpeg .jpg .png .ppm .tif .tiff .webp"
_DOCUMENTS = (
    ".cfg .csv .docx .htm .html .ini .ipynb .json .jsonl .log .md .pdf .py .rst .sh .srt .toml .tsv .txt .vtt .xls"
    " .xlsx .xml .yaml .yml"
)
VIDEO_SUFFIXES, PICTURE_SUFFIXES = frozenset(_VIDEOS.split()), frozenset(_PICTURES.split())
DOCUMENT_SUFFIXES = frozenset(_DOCUMENTS.split())  # notes beside videos: a folder that holds nothing else is no class
# What systems and tools leave beside the files of their users; names that begin with a dot come on top.
_COMPANIONS = frozenset(["__macosx", "@eadir", "$recycle.bin", "thumbs.db", "desktop.ini", "__pycache__"])
_NUMBER = re.compile(r"(?P<before>.*?)(?P<number>[0-9]+)(?P<after>[^0-9]*)", re.DOTALL)
HIDDEN, BROKEN_LINK, NO_FILE, LOOP = "hidden", "a link to nothing", "neither a file nor a folder", "a link in a circle"
NO_SEQUENCE, OTHER_SEQUENCE = "a picture of no numbered sequence", "a picture of another sequence than data.pictures"
BESIDE_VIDEOS, BUSY = "a picture beside videos", "an unfinished download"
_UNFINISHED = frozenset([".crdownload", ".download", ".part", ".partial", ".tmp", ".ytdl"])


@dataclass(frozen=True)
class PictureRun:
    """Numbered pictures in one folder. address: the folder and the pattern of the names; names: the pictures; both
    relative to the root of the walk."""

    address: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Walk:
    """The files below the folder `root`, as paths relative to it, sorted.

    videos: files with the suffix of a video. pictures: runs of numbered pictures. left_out: reason -> the files that
    are neither. folders: the folders directly below the root, without hidden ones; a link counts.
    """

    root: Path
    videos: tuple[str, ...]
    pictures: tuple[PictureRun, ...]
    left_out: Mapping[str, tuple[str, ...]]
    folders: tuple[str, ...]

    @property
    def addresses(self) -> list[str]:
        """The addresses of all clips, sorted."""
        return sorted([*self.videos, *(run.address for run in self.pictures)])


def walk(root: Path, pictures: str | None = None) -> Walk:
    """Walk through a folder and everything below it. Links to folders are followed.

    Args:
        pictures: the pattern of the names of pictures, such as img_{:05}.jpg; None takes what each folder holds.
    Raises:
        DataError: a folder cannot be read, a folder holds several sequences of pictures, or a name would be read as a
            part of a video.
    """
    videos: list[str] = []
    runs: list[PictureRun] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    for folder, names in _folders(root, "", False, (), left_out):
        here, images = list[str](), list[str]()
        for name in names:
            kind = Path(name).suffix.lower()
            if kind in VIDEO_SUFFIXES:
                here.append(join(folder, name))
            elif kind in PICTURE_SUFFIXES:
                images.append(name)
            else:
                left_out[_reason(kind)].append(join(folder, name))
        if here and images and (reason := are_modalities(here_names := [PurePosixPath(p).name for p in here])):
            left_out[reason] += [join(folder, name) for name in here_names]
            here = []
        videos += here
        if here and images:
            left_out[BESIDE_VIDEOS] += [join(folder, name) for name in images]
        elif images:
            runs += _runs(root, folder, images, pictures, left_out)
    out = beside_rgb([*videos, *(run.address for run in runs)])
    for address, names in (*((path, (path,)) for path in videos), *((run.address, run.names) for run in runs)):
        if address in out:
            left_out[out[address]] += names
    videos, runs = [path for path in videos if path not in out], [run for run in runs if run.address not in out]
    for path in videos:
        if not is_plain(path):
            hint = "rename it: #t=, #f= and {} stand for parts of videos and numbers of pictures"
            raise DataError(f"{root / path}: its name has a meaning of its own", hint=hint)
    return Walk(
        root,
        videos=tuple(sorted(videos)),
        pictures=tuple(sorted(runs, key=lambda run: run.address)),
        left_out={reason: tuple(sorted(paths)) for reason, paths in sorted(left_out.items()) if paths},
        folders=tuple(sorted(p.name for p in root.iterdir() if not is_hidden(p.name) and p.is_dir())),
    )


def is_hidden(name: str) -> bool:
    """Return whether a name is hidden, or a companion that a system or a tool left."""
    return name.startswith(".") or name.lower() in _COMPANIONS


def _reason(suffix: str) -> str:
    if suffix in _UNFINISHED:
        return BUSY
    return f"not a video ({suffix})" if suffix else "not a video (no suffix)"


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if folder else name


def exists(path: Path) -> bool:
    """Return whether a path exists; one that is longer than a path can be, or holds a zero byte, does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """Return whether a path is a folder; see `exists`."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _folders(
    path: Path, folder: str, hidden: bool, above: tuple[tuple[int, int], ...], left_out: dict[str, list[str]]
) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder that is not hidden, with the names of its files; put all other files into `left_out`. `above`
    holds the identities of the folders above, by which a link in a circle is told."""
    try:
        names = sorted(p.name for p in path.iterdir())
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    above = (*above, (status.st_dev, status.st_ino))
    files: list[str] = []
    for name in names:
        below, relative, unseen = path / name, join(folder, name), hidden or is_hidden(name)
        try:
            found = below.stat()
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise _unreadable(path, error) from None
            broken = LOOP if error.errno == errno.ELOOP else BROKEN_LINK
            left_out[HIDDEN if unseen else broken].append(relative)
            continue
        if stat.S_ISDIR(found.st_mode):
            if (found.st_dev, found.st_ino) in above:
                left_out[LOOP].append(relative)
            else:
                yield from _folders(below, relative, unseen, above, left_out)
        elif unseen:
            left_out[HIDDEN].append(relative)
        elif stat.S_ISREG(found.st_mode):
            files.append(name)
        else:
            left_out[NO_FILE].append(relative)
    if not hidden:
        yield folder, files


def _unreadable(path: Path, error: OSError) -> DataError:
    hint = "give yourself the right to read it, or move it away"
    return DataError(f"the folder {shown(str(path))} cannot be read: {error.strerror}", hint=hint)


def _runs(
    root: Path, folder: str, names: Sequence[str], wanted: str | None, left_out: dict[str, list[str]]
) -> list[PictureRun]:
    """Return the sequence of numbered pictures in a folder; put the pictures that belong to none into `left_out`."""
    rows: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for name in names:
        number = _numbered(name)
        if number is None:
            left_out[NO_SEQUENCE].append(join(folder, name))
        else:
            before, digits, after = number
            rows[before, after].append((digits, name))
    patterns = {_pattern(*affixes, [d for d, _ in row]): [n for _, n in row] for affixes, row in rows.items()}
    chosen = _chosen(patterns, wanted)
    for pattern, members in patterns.items():
        if pattern not in chosen:
            single = NO_SEQUENCE if len(members) == 1 else OTHER_SEQUENCE
            reason = FLOW if pattern in _flow_of(patterns) and wanted is None else single
            left_out[reason] += [join(folder, name) for name in members]
    if len(chosen) > 1:
        raise DataError(
            f"{shown(str(root / folder))} holds several sequences of pictures: {', '.join(sorted(chosen))}",
            hint=f"name the one to read in the spec: data: {{pictures: '{min(chosen)}'}}",
        )
    return [PictureRun(join(folder, p), tuple(join(folder, name) for name in patterns[p])) for p in chosen]


def _numbered(name: str) -> tuple[str, str, str] | None:
    """Split the name of a picture at the last number of its stem: what is before, the digits, what follows."""
    stem, suffix = Path(name).stem, Path(name).suffix
    match = _NUMBER.fullmatch(stem)
    if match is None or not is_plain(name):
        return None
    return match["before"], match["number"], match["after"] + suffix


def _pattern(before: str, after: str, numbers: Sequence[str]) -> str:
    """Return the pattern of numbered names: the width of the number is written where numbers have leading zeros."""
    width = min(map(len, numbers))
    padded = any(n.startswith("0") and len(n) > 1 for n in numbers)
    return f"{before}{{:0{width}}}{after}" if padded and width > 1 else f"{before}{{}}{after}"


def _chosen(patterns: Mapping[str, Sequence[str]], wanted: str | None) -> list[str]:
    """Return the patterns whose pictures are clips: the wanted one, or all of two pictures or more. Optical flow is
    none if it lies beside other pictures."""
    if wanted is not None:
        return [pattern for pattern in patterns if _bare(pattern) == _bare(wanted)]
    runs = [pattern for pattern, names in patterns.items() if len(names) > 1]
    flow = _flow_of(patterns)
    return [pattern for pattern in runs if pattern not in flow] or runs


def _bare(pattern: str) -> str:
    """Return a pattern without the width of its number, which may differ between folders."""
    return re.sub(r"\{(:0?\d+d?)?\}", "{}", pattern)


def _flow_of(patterns: Iterable[str]) -> set[str]:
    """Return the patterns that are named as optical flow. Letters such as x_{} need their partner y_{}."""
    before = {pattern: pattern.partition("{")[0].strip("_- ") for pattern in patterns}
    letters = {name.lower() for name in before.values()}
    flow: set[str] = set()
    for pattern, name in before.items():
        told, partner = kind_of(name), PARTNERS.get(name.lower())
        if told and told[0] == FLOW and (partner is None or partner in letters):
            flow.add(pattern)
    return flow


def missing(path: Path, what: str, hint: str = "") -> UsageError:
    """Return the error for a folder, table or list that does not exist."""
    return UsageError(
        f"the {what} {path} does not exist",
        hint=hint or "set --data-dir, STAGEDKD_DATA or runtime.data_dir in params.yaml",
    )


def shown(name: str) -> str:
    """Return a name for a message; bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode() if name.isprintable() else ascii(name)[1:-1]
