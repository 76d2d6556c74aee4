"""The calls of files, content by digest and artifacts as Requests; the others are in `requests`. Knows no network."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from orchestrator.client import answers
from orchestrator.client.exchange import Body, Request
from orchestrator.client.spelling import HOLD_S, V1, at
from orchestrator.wire.files import Artifact, Blob, DifferencePage, FileEntry, FilePage, UnpackedAnswer
from orchestrator.workspace import ArchiveFormat


def _file(execution: str, path: str) -> str:
    # The server decodes once; surrogateescape carries names that are not UTF-8.
    # A path that begins with a slash (/state/…) keeps it.
    return at(execution, "/files/" + quote(path.encode(errors="surrogateescape"), safe="/"))


def _seen(snapshot: str, **query: str | bool) -> dict[str, str]:
    """A query of what was given; with the snapshot to look into."""
    said = {"snapshot": snapshot, **query}
    return {name: "true" if value is True else str(value) for name, value in said.items() if value}


def watch(execution: str, path: str) -> Request[None]:
    """What changes below a directory, as events. Read by changes.py."""
    return Request("GET", _file(execution, path), answers.nothing, query={"watch": "true"})


def blob_known(sha256: str) -> Request[bool]:
    """Whether this content is there already."""
    return Request("HEAD", f"{V1}/blobs/{sha256}", answers.known, also=frozenset({404}))


def blob(body: Body) -> Request[Blob]:
    """Store content. Repeatable when the body is: content has its own name, its digest."""
    return Request(
        "POST",
        f"{V1}/blobs",
        answers.blob,
        headers={"content-type": "application/octet-stream"},
        body=body,
        repeatable=isinstance(body, bytes | Path),
    )


def file_stat(execution: str, path: str, *, snapshot: str = "") -> Request[FileEntry]:
    """One entry of the workspace; "" = /workspace itself."""
    return Request("GET", _file(execution, path), answers.entry, query=_seen(snapshot, stat=True))


def files(
    execution: str,
    path: str = "",
    *,
    recursive: bool = False,
    glob: str = "",
    after: str = "",
    limit: int = 1000,
    snapshot: str = "",
) -> Request[FilePage]:
    """A page of a directory, in byte order; with `glob`, of what fits it anywhere below."""
    query = _seen(snapshot, limit=str(limit), recursive=recursive, glob=glob, after=after)
    return Request("GET", _file(execution, path), answers.file_page, query=query)


def search(
    execution: str, name: str, *, path: str = "", after: str = "", limit: int = 1000, snapshot: str = ""
) -> Request[FilePage]:
    """A page of entries whose name has this in it, or fits it."""
    query = _seen(snapshot, name=name, path=path, after=after, limit=str(limit))
    return Request("GET", at(execution, "/search"), answers.file_page, query=query)


def archive(execution: str, path: str, format: ArchiveFormat, *, snapshot: str = "") -> Request[None]:
    """A directory as one archive. Read by downloading.py: it cannot be continued, so a line that breaks is an error."""
    return Request("GET", _file(execution, path), answers.nothing, query=_seen(snapshot, archive=format))


def unpack(execution: str, path: str, body: Body, format: ArchiveFormat) -> Request[UnpackedAnswer]:
    """An archive into a directory. Repeatable when the body can be read again."""
    return Request(
        "PUT",
        _file(execution, path),
        answers.unpacked,
        query={"unpack": format},
        headers={"content-type": "application/octet-stream"},
        body=body,
        repeatable=isinstance(body, bytes | Path),
        hold_s=HOLD_S,
    )


def mkdir(execution: str, path: str) -> Request[FileEntry]:
    """A directory, with those above it."""
    return Request("POST", _file(execution, path), answers.entry, query={"op": "mkdir"})


def move(execution: str, path: str, to: str, *, overwrite: bool = False) -> Request[FileEntry]:
    """Another name. Not repeatable: a second one would not find it any more."""
    query = {"op": "move", "to": to} | ({"overwrite": "true"} if overwrite else {})
    return Request("POST", _file(execution, path), answers.entry, query=query, repeatable=False)


def remove_file(execution: str, path: str, *, recursive: bool = False) -> Request[None]:
    """A file or directory. A repeat that finds nothing is the first one's success."""
    query = {"recursive": "true"} if recursive else {}
    return Request("DELETE", _file(execution, path), answers.nothing, query=query, hold_s=HOLD_S)


def diff(
    execution: str,
    before: str = "",
    after: str = "now",
    *,
    path: str = "",
    patch: bool = False,
    start: str = "",
    limit: int = 1000,
) -> Request[DifferencePage]:
    """A page of what differs between two snapshots, or one and "now"; before "" = its newest."""
    query = {"from": before, "to": after, "path": path, "after": start, "limit": str(limit)}
    query = {name: value for name, value in query.items() if value} | ({"patch": "true"} if patch else {})
    return Request("GET", at(execution, "/diff"), answers.difference_page, query=query, hold_s=HOLD_S)


def content(execution: str, path: str, *, offset: int = 0, etag: str = "", snapshot: str = "") -> Request[None]:
    """A file's bytes from `offset`; with `etag`, only if it is still the same file. Read by downloading.py."""
    headers: dict[str, str] = {}
    if offset:
        headers["range"] = f"bytes={offset}-"
        if etag:
            headers["if-range"] = etag
    return Request("GET", _file(execution, path), answers.nothing, query=_seen(snapshot), headers=headers)


def write(
    execution: str, path: str, body: Body, *, mode: int | None = None, if_match: str = "", if_absent: bool = False
) -> Request[FileEntry]:
    """Write a file whole or not at all. Repeatable when the body can be read again, and no condition would then refuse
    what it did itself."""
    headers = {"content-type": "application/octet-stream"}
    if if_match:
        headers["if-match"] = if_match
    if if_absent:
        headers["if-none-match"] = "*"
    return Request(
        "PUT",
        _file(execution, path),
        answers.entry,
        query={} if mode is None else {"mode": f"{mode:04o}"},
        headers=headers,
        body=body,
        repeatable=isinstance(body, bytes | Path) and not if_match and not if_absent,
    )


def artifacts(execution: str) -> Request[list[Artifact]]:
    """What lies in /workspace/artifacts, with digests once the execution has ended."""
    return Request("GET", at(execution, "/artifacts"), answers.artifacts)


def artifact(execution: str, path: str, *, offset: int = 0, etag: str = "") -> Request[None]:
    """An artifact's bytes; `path` relative to /workspace/artifacts."""
    request = content(execution, path, offset=offset, etag=etag)
    raw = quote(path.lstrip("/").encode(errors="surrogateescape"), safe="/")
    return Request("GET", at(execution, f"/artifacts/{raw}"), answers.nothing, headers=request.headers)
