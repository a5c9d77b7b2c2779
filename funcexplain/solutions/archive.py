"""One file of named tensors and notes on them: safetensors with checksums, written atomically.

    8 bytes    length of the header, little endian
    header     JSON: dtype, shape and position of every tensor; the notes under ``__metadata__``
    the rest   the tensors' bytes, one after another

The format of https://github.com/huggingface/safetensors, read and written here in a few lines: no extra
is needed and bfloat16 is preserved; that library can read these files. Nothing in a file is executed.
The format has no checksums: those of the tensors and of the header are stored in the notes, so that
reading a damaged file fails instead of returning wrong numbers.

``where`` is the public function that was called, for messages. Reading raises a TypeError for a value
that is not a path, a ValueError for a file that is truncated, damaged, of another kind or of a later
version, and an OSError if it cannot be read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Collection, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import funcexplain
from funcexplain.solutions.reading import MIB, opened, too_large
from funcexplain.solutions.writing import as_path, output_path, quote, replaced

FORMAT = 1
"""Version of the notes and of the meaning of the tensors; files of later versions are refused."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_MAX_HEADER = 32 * MIB  # as JSON; as objects it takes twenty times that


def write_archive(
    where: str, path: str | os.PathLike[str], tensors: Mapping[str, Tensor], notes: Mapping[str, Any]
) -> None:
    """Write tensors and notes atomically: if anything fails, an existing file stays as it was.

    The tensors may be on any device, in any layout. The notes are JSON values; the format's version and
    software versions are added.

    Raises:
        TypeError: for a value that is not a path, an unsupported dtype, or notes that are not JSON.
        ValueError: for notes with NaN or infinite numbers.
        OSError: if it cannot be written.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp(), "tensors.safetensors")
        >>> write_archive("save", path, {"x": torch.ones(2)}, {"of": "ones"})
        >>> read_archive("load", path)[0]
        {'x': tensor([1., 1.])}
    """
    file_path = output_path(where, path)
    try:
        text = json.dumps({"format": FORMAT, "versions": versions(), **notes}, allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise TypeError(
            f"{where}: settings must be JSON values (text, numbers, bools, None, and lists and dicts of "
            f"these), got another value: {error}"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{where}: settings must be finite and without circular references, got otherwise: {error}; "
            "convert such values to text"
        ) from None
    header: dict[str, Any] = {}
    blocks, digests, offset = [], {}, 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES:
            raise TypeError(
                f"{where}: {name} must be of a dtype among {', '.join(map(str, _CODES))}, got "
                f"{tensor.dtype}; convert it first"
            )
        # Zero-dimensional tensors cannot be viewed as bytes; flat ones can.
        block = tensor.detach().cpu().flatten().view(torch.uint8).numpy().data
        end = offset + len(block)
        code, shape = _CODES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, end]}
        digests[name] = hashlib.sha256(block).hexdigest()
        blocks.append(block)
        offset = end
    header["__metadata__"] = {"funcexplain": text, "digests": json.dumps(digests)}
    header["__metadata__"]["sha256"] = _digest(header)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors begin aligned, for readers that map the file
    if len(encoded) > _MAX_HEADER:
        raise ValueError(
            f"{where}: labels, settings and errors must take at most {_MAX_HEADER / MIB:g} MiB as JSON, "
            f"got {len(encoded) / MIB:.3g}; keep long settings in a file of their own"
        )
    with replaced(where, file_path) as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for block in blocks:
            file.write(block)


def read_archive(
    where: str, path: str | os.PathLike[str], names: Collection[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_archive` wrote, bit for bit.

    Returns:
        The tensors called ``names`` (default: all), on the CPU, and the notes.
    """
    file_path = as_path(where, path)
    with opened(where, file_path) as file:
        header, notes = _read_header(where, file_path, file)
        digests, tensors = json.loads(header["__metadata__"]["digests"]), {}
        start = file.tell()
        for name, digest in digests.items():
            if names is not None and name not in names:
                continue
            entry = header[name]
            begin, end = entry["data_offsets"]
            block = bytearray(end - begin)
            file.seek(start + begin)
            if file.readinto(block) != len(block):
                raise _broken(where, file_path, "cut off")
            if hashlib.sha256(block).hexdigest() != digest:
                raise _broken(where, file_path, f"damaged, its {name!r} does not match its checksum")
            tensors[name] = _decode(block, _DTYPES[entry["dtype"]], entry["shape"])
    return tensors, notes


def read_notes(where: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read only the notes of a file, at a cost independent of its tensors; else like `read_archive`."""
    file_path = as_path(where, path)
    with opened(where, file_path) as file:
        return _read_header(where, file_path, file)[1]


def versions() -> dict[str, str]:
    """Versions of the software that an answer depends on."""
    return {
        "funcexplain": funcexplain.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _read_header(where: str, path: Path, file: BufferedReader) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header, checked against its digest and the size of the file, and its notes."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    first = file.read(1)
    if len(start) < 8 or first != b"{":
        raise ValueError(f"{where}: {quote(path)} is not a saved solution, {_guess(start, size)}")
    if _MAX_HEADER < length <= size:
        raise too_large(where, path, _MAX_HEADER, "solve and save again", what="have a header of")
    if 8 + length > size:
        raise _broken(where, path, "cut off")
    try:
        header = json.loads(first + file.read(length - 1))
        metadata = header["__metadata__"]
        text = metadata["funcexplain"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ValueError(
            f"{where}: {quote(path)} is damaged, or holds other tensors; solution.save(path) "
            "writes files that can be loaded"
        ) from None
    try:
        genuine = metadata.pop("sha256") == _digest(header)
        notes = json.loads(text) if genuine else {}
        later = genuine and notes["format"] > FORMAT
        writer = notes["versions"]["funcexplain"] if later else ""
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        genuine = False
    if not genuine:
        raise _broken(where, path, "damaged, its header does not match its checksum")
    if later:
        raise ValueError(
            f"{where}: {quote(path)} was saved by funcexplain {writer} in "
            f"format {notes['format']}, this version reads up to format {FORMAT}; "
            "pip install -U funcexplain"
        )
    try:
        stored = _stored_bytes(header)
    except (ValueError, LookupError, TypeError, AttributeError):
        # The checksum is not secret: a whole file may be forged.
        raise _broken(where, path, "damaged, its header contradicts itself") from None
    if size < 8 + length + stored:
        raise _broken(where, path, "cut off")
    if size > 8 + length + stored:
        raise _broken(where, path, "damaged, something was appended to it")
    return header, notes


def _stored_bytes(header: dict[str, Any]) -> int:
    """Size of all tensors; raises unless they are contiguous and fit their shapes."""
    digests, offset = json.loads(header["__metadata__"]["digests"]), 0
    for name in header.keys() - {"__metadata__"} ^ digests.keys():
        raise LookupError(name)
    for name in digests:
        entry = header[name]
        end = offset + math.prod(entry["shape"]) * _itemsize(_DTYPES[entry["dtype"]])
        if entry["data_offsets"] != [offset, end] or min(entry["shape"], default=0) < 0:
            raise ValueError(name)
        offset = end
    return offset


def _digest(header: dict[str, Any]) -> str:
    """SHA-256 of a header."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _broken(where: str, path: Path, how: str) -> ValueError:
    """The error for a file that is cut off or damaged."""
    return ValueError(f"{where}: {quote(path)} is {how}; copy it again, or solve and save again")


def _guess(start: bytes, size: int) -> str:
    """A guess at the kind of a foreign file, and a remedy."""
    if size < 9:
        return f"it has {size} bytes; copy it again, or solve and save again"
    kinds = {b"PK": "a zip, as torch.save and numpy.savez write,", b"\x80": "a pickle"}
    kind = next((kind for magic, kind in kinds.items() if start.startswith(magic)), "something else")
    return f"but {kind} or damaged; solution.save(path) writes files that can be loaded"


def read_safetensors(where: str, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of any safetensors file, such as a network's weights, without checksums.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "weights.safetensors")
        >>> write_archive("save", path, {"bias": torch.ones(2)}, {})
        >>> read_safetensors("load", path)
        {'bias': tensor([1., 1.])}
    """
    file_path = as_path(where, path)
    remedy = "safetensors.torch.save_file(network.state_dict(), path) writes one"
    with opened(where, file_path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or 8 + length > size:
            raise ValueError(f"{where}: {quote(file_path)} is not a safetensors file, or cut off")
        if length > _MAX_HEADER:
            raise too_large(where, file_path, _MAX_HEADER, remedy, what="have a header of")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = {name: _entry(entry) for name, entry in header.items()}
            _check_tiled([(begin, end) for *_, begin, end in entries.values()], size - 8 - length)
            tensors = {}
            for name, (dtype, shape, begin, end) in entries.items():
                file.seek(8 + length + begin)
                tensors[name] = _decode(bytearray(file.read(end - begin)), dtype, shape)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{where}: {quote(file_path)} is not a safetensors file, or damaged ({error}); {remedy}"
            ) from None
    return tensors


def _decode(block: bytearray, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A tensor that uses these bytes."""
    # torch.frombuffer rejects an empty buffer.
    flat = torch.frombuffer(block, dtype=dtype) if block else torch.empty(0, dtype=dtype, device="cpu")
    return flat.view(torch.Size(shape))


def _itemsize(dtype: torch.dtype) -> int:
    """Bytes of one number."""
    return torch.empty((), dtype=dtype).element_size()  # dtype.itemsize needs torch 2.1


def _entry(entry: dict[str, Any]) -> tuple[torch.dtype, list[int], int, int]:
    """Dtype, shape, begin and end of a tensor in a file, checked for consistency."""
    codes = {**_DTYPES, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
    dtype, shape, (begin, end) = codes[entry["dtype"]], entry["shape"], entry["data_offsets"]
    if not all(type(number) is int for number in (*shape, begin, end)):
        raise ValueError(f"its sizes must be integers, got {shape} at {begin} to {end}")
    if end - begin != math.prod(shape) * _itemsize(dtype) or min(shape, default=0) < 0:
        raise ValueError(f"a tensor of shape {shape} does not take {end - begin} bytes")
    return dtype, shape, begin, end


def _check_tiled(spans: Sequence[tuple[int, int]], stored: int) -> None:
    """Raise unless tensors follow one another: those that overlap take more memory than the file."""
    offset = 0
    for begin, end in sorted(spans):
        if begin != offset:
            raise ValueError(f"its tensors overlap, or leave a gap, at byte {min(begin, offset)}")
        offset = end
    if offset != stored:
        raise ValueError(f"its tensors take {offset} bytes of {stored}, they are not within the file")
