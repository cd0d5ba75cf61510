"""The bodies of requests -> images or paths. Every mistake is an HTTPException that names it."""

from __future__ import annotations

from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

from clipbatch.config.nesting import parse_json
from clipbatch.storage.uris import is_text


def files_of_form(body: bytes, content_type: str, most: int) -> list[tuple[str, bytes]]:
    """Name and bytes of each file in a multipart/form-data body; `most` files at most.

    Raises: HTTPException 413 for more files; 400 for a body that is not whole, or has a part that is no file.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise HTTPException(400, "the content type multipart/form-data has no boundary: send the one that the body has")
    form = _Form(most)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise HTTPException(400, f"the form is malformed: {error}") from None
    if not form.complete:
        raise HTTPException(400, "the form has no end: after its last part, send the boundary with -- at its end")
    if not form.files:
        raise HTTPException(400, "no file in the form: send one for each image")
    return [(name, bytes(data)) for name, data in form.files]


class _Form:
    """Collects what the parser finds."""

    def __init__(self, most: int) -> None:
        self.files: list[tuple[str, bytearray]] = []
        self.complete = False
        self._most = most
        self._field, self._value, self._disposition = bytearray(), bytearray(), b""

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_file,
            "on_part_data": lambda data, start, end: self.files[-1][1].extend(memoryview(data)[start:end]),
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition = b""

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def _begin_file(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if b"filename" not in options:
            name = options.get(b"name", b"").decode("utf-8", "replace")
            raise HTTPException(
                400, f"the part {name[:100]!r} of the form is no file: send only files, one for each image"
            )
        if len(self.files) == self._most:
            raise HTTPException(413, f"more than {self._most} files, which are taken at a time: send fewer")
        file_name = options[b"filename"]
        try:
            self.files.append((file_name.decode(), bytearray()))
        except UnicodeDecodeError:
            self.files.append((file_name.decode("latin-1"), bytearray()))

    def _end(self) -> None:
        self.complete = True


def paths_of_json(body: bytes, *, most: int, max_depth: int) -> list[str]:
    """The paths in `{"paths": [...]}`. Raises: HTTPException 413 for more than `most`; 400 for anything else."""
    try:
        paths = parse_json(body, max_depth)["paths"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        why = f" ({error})" if isinstance(error, ValueError) else ""
        raise HTTPException(400, f'the body is not {{"paths": ["a.jpg", ...]}}{why[:200]}') from None
    if not isinstance(paths, list) or not all(isinstance(path, str) and is_text(path) for path in paths):
        raise HTTPException(400, f"paths is no list of texts: {str(paths)[:100]}")
    if len(paths) > most:
        raise HTTPException(413, f"{len(paths)} paths, and {most} are taken at a time: send fewer")
    return paths
