"""Read a weight file without running any of it. What is not tensors and plain values is refused, each kind of file in a
sentence of its own.

A pickle can run any code, so none is unpickled: torch's own reader takes tensors and plain values alone, and the names
of other classes are read from the opcodes.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import glob
import io
import json
import pickletools
import re
import shlex
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load

from stagedkd.errors import DataError
from stagedkd.files import FileBytes

HEAD_BYTES = 512  # enough for every format's first bytes
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6 begins with this pickled number
LEGACY_PICKLES = 5  # a magic number, a version, facts of the machine, the content, the keys of the storages
PICKLE = re.compile(rb"\x80[\x02-\x05]")
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")
AGAIN = "copy or download it again, and compare its size with that of the source"
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, 7z, zstd
MARKS: tuple[tuple[bytes, str, str], ...] = (  # first bytes, what the file is, what to do
    (b"version https://git-lfs", "it is a pointer of Git LFS, not the weights themselves", "run: git lfs pull"),
    (b"/annex/objects/", "it is a pointer of git-annex, not the weights themselves", "run: git annex get FILE"),
    (b"\x89HDF\r\n", "it is an HDF5 file, as Keras writes it", "convert it to a .safetensors file"),
    (b"GGUF", "it is a GGUF file", "convert it to a .safetensors file"),
    *((mark, "it is a compressed file", "unpack it, and name the file inside") for mark in COMPRESSED),
)
PLAIN = re.compile(  # what torch's reader takes beside tensors
    r"torch\.(_utils|_tensor|storage|serialization|nn\.parameter)\.\w+|torch\.(\w+Storage|Size|[a-z]\w*)"
    r"|collections\.(OrderedDict|Counter)|(__builtin__|builtins)\.(set|frozenset|bytearray|complex)|_codecs\.encode"
)
HARMLESS = re.compile(  # plain holders of values: a hint may name them to torch's reader
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w+|numpy\.(_?core\.(multiarray|numeric)\.\w+|dtype|ndarray)"
)


@dataclass(frozen=True)
class Content:
    """What a weight file holds. `tree`: dicts and lists of tensors, words and numbers, as they were saved. `metadata`:
    the words that a .safetensors file keeps beside its tensors."""

    tree: Any
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


def read_content(file: FileBytes) -> Content:
    """Read a file of tensors: .safetensors, or one of torch.save. What it is, its first bytes say, not its suffix.

    Raises:
        DataError: the file holds something else, or is damaged. The hint says how to come to the tensors.
    """
    path, start = file.path, file.content[:HEAD_BYTES]
    if (shard := SHARD.search(path.name)) and int(shard[1]) > 1:
        raise _unreadable(path, f"it is one of {int(shard[1])} parts of a network", _joining(path, shard[1]))
    if not start:
        raise _unreadable(path, "it is empty", AGAIN)
    for mark, what, hint in MARKS:
        if start.startswith(mark):
            raise _unreadable(path, what, hint)
    if start[8:9] == b"{":
        return _safetensors(file)
    if start.startswith(b"PK\x03\x04"):
        _refuse_other_archives(file)
        return _torch(file)
    if PICKLE.match(start):
        return _torch(file)
    raise _unreadable(path, *_other(path, start))


def shown(text: object, most: int = 100) -> str:
    """Return a word of a file as it may be printed: without control characters, and not too long."""
    plain = "".join(c if c.isprintable() else "?" for c in str(text)[: most + 1])
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def _unreadable(path: Path, what: str, hint: str) -> DataError:
    return DataError(f"{path} cannot be read: {what}", hint=hint)


def _other(path: Path, start: bytes) -> tuple[str, str]:
    """Return what a file is that holds no tensors, by its first bytes, and what to do."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return "it is a web page, not weights", "download the file itself: the link led to a page about it"
    if start.startswith(b"\x93NUMPY"):
        return "it is a NumPy array", "save the named tensors of a network: torch.save(net.state_dict(), FILE)"
    if start[257:262] == b"ustar":
        old = "it is a tar archive, the form of torch.save before 2017"
        return old, f"in the program that wrote it, with a newer torch: {_saving(path)}"
    if not start.strip(b"\0"):
        return "it begins with zeros, so it was not written to its end", AGAIN
    if b"\0" not in start and all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return f"it is text: {shown(start.decode('utf-8', 'replace').split(chr(10))[0], 60)}", AGAIN
    return "it is neither a .safetensors file nor one of torch.save, or it is damaged", AGAIN


def _safetensors(file: FileBytes) -> Content:
    try:
        tensors = load(file.content)
        header: dict[str, Any] = json.loads(file.content[8 : 8 + int.from_bytes(file.content[:8], "little")])
        return Content(tensors, dict(header.get("__metadata__") or {}))
    except Exception as error:  # the library raises errors of its own type, and others for types of numbers
        raise _unreadable(file.path, "it is a damaged .safetensors file, or one that was cut off", AGAIN) from error


def _refuse_other_archives(file: FileBytes) -> None:
    """Raise DataError if a zip archive is not one of torch.save."""
    path = file.path
    try:
        with zipfile.ZipFile(io.BytesIO(file.content)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError):
        raise _unreadable(path, "it is damaged, or was cut off before its end", AGAIN) from None
    if any(name.endswith("/constants.pkl") for name in names):
        code = "import torch; torch.save(torch.jit.load(<file>, 'cpu').state_dict(), <copy>)"
        command = _command(code, file=path, copy=_copy(path))
        hint = f"write its tensors alone into a new file, where you trust it:\n    {command}"
        raise _unreadable(path, "it is a TorchScript program (torch.jit.save), not tensors alone", hint)
    if any(name.endswith(".npy") for name in names):
        arrays = "{n: torch.from_numpy(a) for n, a in numpy.load(<file>).items()}"
        command = _command(f"import numpy, torch; torch.save({arrays}, <copy>)", file=path, copy=_copy(path))
        raise _unreadable(path, "it is an archive of NumPy arrays", f"convert it:\n    {command}")
    if not any(name.endswith("data.pkl") for name in names):
        raise _unreadable(path, "it is a zip archive, and not one of torch.save", "unpack it, and name the file inside")


def _torch(file: FileBytes) -> Content:
    """Read a file of torch.save. Its reader refuses all but tensors and plain values."""
    path = file.path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old forms, which are read all the same
            return Content(torch.load(io.BytesIO(file.content), map_location="cpu", weights_only=True))
    except Exception:  # torch raises errors of many types; its words name a switch that would run the file
        pass
    classes = [name for name in wanted_classes(file) if not PLAIN.fullmatch(name)]
    some = ", ".join(shown(name) for name in classes[:3]) + (f" and {len(classes) - 3} more" if classes[3:] else "")
    if not file.content.startswith((b"PK", LEGACY)):
        what = "it is a plain pickle" + (f" with objects of {some}" if some else "") + ", not a file of torch.save"
        raise _unreadable(path, what, f"in the program that wrote it, where you trust it: {_saving(path)}")
    if not classes:
        raise _unreadable(path, "it is damaged, or was cut off before its end", AGAIN)
    if any(name.startswith("torch.nn.modules.") for name in classes):
        what = f"it holds a whole network as a pickled object ({some}), not its tensors alone"
        raise _unreadable(path, what, f"in the program that wrote it, where you trust it: {_saving(path)}")
    what = f"beside tensors, it holds pickled objects of {some}, and a pickle can run any code"
    raise _unreadable(path, what, _writing_again(path, classes))


def wanted_classes(file: FileBytes) -> list[str]:
    """Return the classes and functions that the pickles of a file name, in order, read from their opcodes: nothing is
    unpickled. A damaged file gives those up to the damage."""
    found: dict[str, None] = {}
    try:
        stream = io.BytesIO(file.content)
        if zipfile.is_zipfile(stream):
            with zipfile.ZipFile(stream) as archive:
                name = min((n for n in archive.namelist() if n.endswith("data.pkl")), key=len)
                _collect(io.BytesIO(archive.read(name)), 1, found)
        else:
            stream.seek(0)  # from where is_zipfile left it
            _collect(stream, LEGACY_PICKLES, found)
    except (ValueError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        pass  # damaged: what was found until there is named
    return list(found)


def _collect(stream: IO[bytes], pickles: int, found: dict[str, None]) -> None:
    """Add the names of the classes of the next pickles of a stream. Raises ValueError: a pickle is damaged."""
    for _ in range(pickles):
        for name in _names(pickletools.genops(stream)):
            found.setdefault(name)


def _names(operations: Iterable[tuple[Any, Any, Any]]) -> Iterator[str]:
    """Yield the names of classes in the opcodes of one pickle. A name is one argument (GLOBAL), or the last two words
    on the stack (STACK_GLOBAL), which may come from the memo."""
    memo: dict[int, str | None] = {}
    words, last = ["?", "?"], None
    for operation, argument, _ in operations:
        code = operation.name
        if code in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)
        elif code == "STACK_GLOBAL":
            yield f"{words[-2]}.{words[-1]}"
        if code == "MEMOIZE":
            memo[len(memo)] = last
        elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = last
        else:
            last = memo.get(int(argument)) if code in ("GET", "BINGET", "LONG_BINGET") else argument
            last = last if isinstance(last, str) else None
            words = words if last is None else [words[-1], last]


def _copy(path: Path) -> Path:
    return path.with_name(f"{path.stem}-tensors.pth")


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)


def _command(code: str, **paths: Path) -> str:
    """Return a command that can be pasted. `paths` go in last, for <name>, since they may hold any quotes."""
    code = code.replace("'", '"')
    for name, path in paths.items():
        code = code.replace(f"<{name}>", _quoted(path))
    return f"python -c {shlex.quote(code)}"


def _saving(path: Path) -> str:
    return f"torch.save(net.state_dict(), {_quoted(Path(_copy(path).name))})"  # that program may run elsewhere


def _writing_again(path: Path, classes: list[str]) -> str:
    """Return a hint for a file of tensors and pickled objects: a command that names the classes to torch's reader and
    keeps the tensors, where all of them are plain holders of values; else what the program that wrote it can do."""
    where = "write its tensors alone into a new file, where you trust it"
    if not all(HARMLESS.fullmatch(name) for name in classes):
        return f"{where}, in the program that wrote it: {_saving(path)}"
    modules = sorted({"torch", *(name.split(".")[0] for name in classes)})
    allowed = [f"({name}, '{name}')" for name in classes]  # by the name in the file: numpy has renamed its own
    if "numpy" in modules:
        allowed.append("*(type(numpy.dtype(c)) for c in '?bBhHiIlLqQefdU')")
    kept = "{k: keep(v) if isinstance(v, dict) else v for k, v in d.items() if isinstance(v, (dict, torch.Tensor))}"
    read = "torch.load(<file>, map_location='cpu')"
    code = f"import {', '.join(modules)}; torch.serialization.add_safe_globals([{', '.join(allowed)}])"
    code += f"; keep = lambda d: {kept}; torch.save(keep({read}), <copy>)"
    return f"{where}:\n    {_command(code, file=path, copy=_copy(path))}"


def _joining(path: Path, count: str) -> str:
    """Return a hint for a part of a network: the command that joins all parts."""
    pattern = Path(glob.escape(str(path.parent))) / SHARD.sub(f"-*-of-{count}.", glob.escape(path.name))
    whole = path.with_name(SHARD.sub(".", path.name))
    read: Callable[[str], str] = "load_file({})".format
    load, save = "from safetensors.torch import load_file, save_file", "save_file(t, <whole>)"
    if path.suffix.lower() != ".safetensors":
        read = "torch.load({}, map_location='cpu')".format
        load, save = "import torch", "torch.save(t, <whole>)"
    parts = f"{{n: v for p in sorted(glob.glob(<parts>)) for n, v in {read('p')}.items()}}"
    command = _command(f"import glob; {load}; t = {parts}; {save}", parts=pattern, whole=whole)
    return f"join the parts:\n    {command}"
