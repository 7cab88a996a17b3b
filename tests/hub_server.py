"""A small Hugging Face hub on the loopback interface: what huggingface_hub asks of one, kept in memory.

It serves repositories with branches and commits, files with ETag and Range, and takes pushes (regular files inline,
large ones through git-lfs' basic transfer; xet is left out: clients set ``HF_HUB_DISABLE_XET=1``). It can break a
connection halfway, or hold a file until told, and writes down every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE_SUFFIXES = (".safetensors", ".bin", ".model")
TOKEN = "hf_loopback"
HALT_SECONDS = 60.0


@dataclass
class Repository:
    """Files by path for every commit, and what the branches point at."""

    is_gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Put the files on top of a branch and return the commit."""
        tree = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        sha = hashlib.sha1(repr((len(self.commits), sorted(tree.items()))).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = tree, sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch's name or of its own."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    range: str | None


class HubServer:
    """The hub; a context manager that listens while it is entered."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.large_files: dict[str, bytes] = {}
        self._cut: set[str] = set()
        self._held: dict[str, threading.Event] = {}
        self._is_reached = threading.Event()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for event in self._held.values():
            event.set()
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, folder: Path, *, branch: str = "main", is_gated: bool = False) -> str:
        """Publish a folder under a name and return the commit."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        repository = self.repositories.setdefault(name, Repository(is_gated))
        return repository.commit(files, branch)

    def files(self, name: str) -> dict[str, bytes]:
        """What a repository's main branch holds."""
        repository = self.repositories[name]
        return repository.commits[repository.branches["main"]]

    def fetched(self, name: str) -> list[Request]:
        """GET requests for a repository's files."""
        return [r for r in self.requests if r.method == "GET" and r.path.startswith(f"/{name}/resolve/")]

    def cut(self, file: str) -> None:
        """Break the next connection over which this file is fetched, halfway."""
        self._cut.add(file)

    def hold(self, file: str) -> threading.Event:
        """Stop halfway whenever this file is fetched; the event is set once that is reached."""
        self._held[file] = threading.Event()
        self._is_reached.clear()
        return self._is_reached

    def let_go(self, file: str) -> None:
        """No longer hold the file."""
        self._held.pop(file).set()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *address: object) -> None:
        """A client that was killed resets its connections: no error of the hub."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*address)


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        path = self._note()
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            if found := self._find(match[1], match[2] or "main"):
                self._send_info(match[1], *found)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", path):
            if found := self._find(match[1], match[2]):
                self._send_tree(found[0].commits[found[1]], match[3])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if found := self._find(match[1], match[2], is_file=True):
                self._send_file(found[0].commits[found[1]], found[1], match[3])
        elif path == "/api/whoami-v2":
            self._send({"name": "me", "type": "user", "auth": {}})
        else:
            self._refuse(404, "", f"no such page: {path}")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, body = self._note(), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "", "Invalid username or password.")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            if self._find(match[1], None):
                self._send({"files": [_upload_mode(file) for file in json.loads(body)["files"]]})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._send({"transfer": "basic", "objects": [self._upload_of(o) for o in json.loads(body)["objects"]]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            if found := self._find(match[1], None):
                self._commit(match[1], found[0], match[2], [json.loads(line) for line in body.splitlines()])
        else:
            self._refuse(404, "", f"no such page: {path}")

    def do_PUT(self) -> None:
        path, body = self._note(), self.rfile.read(int(self.headers["Content-Length"]))
        oid = path.rsplit("/", 1)[-1]
        if hashlib.sha256(body).hexdigest() != oid:
            self._refuse(400, "", "the content is not that of its name")
            return
        self.server_hub.large_files[oid] = body
        self._send({})

    def _note(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server_hub.requests.append(Request(self.command, path, self.headers.get("Range")))
        return path

    def _find(self, name: str, revision: str | None, is_file: bool = False) -> tuple[Repository, str] | None:
        """Repository and commit; None = an error was sent. Gated ones are described to all, their files are not."""
        repository = self.server_hub.repositories.get(name)
        if repository is None:
            self._refuse(401, "RepoNotFound", "Invalid username or password.")
        elif is_file and repository.is_gated:
            self._refuse(403, "GatedRepo", f"Access to model {name} is restricted.")
        elif revision is None:
            return repository, ""
        elif (commit := repository.resolve(revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository, commit
        return None

    def _send_info(self, name: str, repository: Repository, commit: str) -> None:
        siblings = [{"rfilename": path} for path in sorted(repository.commits[commit])]
        info = {"_id": "0" * 24, "id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
        self._send(info | {"private": False, "gated": "manual" if repository.is_gated else False, "downloads": 0})

    def _send_tree(self, files: Mapping[str, bytes], folder: str | None) -> None:
        inside = {path: data for path, data in files.items() if folder is None or path.startswith(f"{folder}/")}
        if folder is not None and not inside:
            self._refuse(404, "EntryNotFound", f"{folder} does not exist")
            return
        self._send([_tree_entry(path, data) for path, data in sorted(inside.items())])

    def _send_file(self, files: Mapping[str, bytes], commit: str, file: str) -> None:
        data = files.get(file)
        if data is None:
            self._refuse(404, "EntryNotFound", f"{file} does not exist")
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{_etag(file, data)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        hub, half = self.server_hub, start + (len(data) - start) // 2
        if file in hub._cut or file in hub._held:
            self.wfile.write(data[start:half])
            self.wfile.flush()
            if file in hub._cut:
                hub._cut.remove(file)
                self.close_connection = True
                return
            hub._is_reached.set()
            hub._held[file].wait(HALT_SECONDS)
            start = half
        self.wfile.write(data[start:])

    def _create(self, wanted: Mapping[str, str]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        is_new = name not in self.server_hub.repositories
        if is_new:
            self.server_hub.repositories[name] = Repository()
            self.server_hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        url = f"{self.server_hub.url}/{name}"
        self._send({"url": url, "name": name, "id": "0" * 24}, 200 if is_new else 409)

    def _upload_of(self, wanted: Mapping[str, object]) -> dict[str, object]:
        """Where a large file goes; nowhere if it is here."""
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in self.server_hub.large_files:
            answer["actions"] = {"upload": {"href": f"{self.server_hub.url}/lfs/{wanted['oid']}", "header": {}}}
        return answer

    def _commit(self, name: str, repository: Repository, branch: str, lines: list[dict]) -> None:
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server_hub.large_files[value["oid"]]
        commit = repository.commit(files, branch)
        self._send({"success": True, "commitOid": commit, "commitUrl": f"{self.server_hub.url}/{name}/commit/{commit}"})

    def _send(self, answer: object, status: int = 200, **headers: str) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send({"error": message}, status, X_Error_Code=code, X_Error_Message=message)


def _etag(file: str, data: bytes) -> str:
    """sha256 of a large file, git's hash of another."""
    if file.endswith(LARGE_SUFFIXES):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _tree_entry(file: str, data: bytes) -> dict[str, object]:
    entry = {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if file.endswith(LARGE_SUFFIXES):
        entry["lfs"] = {"oid": _etag(file, data), "size": len(data), "pointerSize": 134}
    return entry


def _upload_mode(file: Mapping[str, object]) -> dict[str, object]:
    mode = "lfs" if str(file["path"]).endswith(LARGE_SUFFIXES) else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
