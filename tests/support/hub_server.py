"""A small Hub: an HTTP server on 127.0.0.1 that speaks what `huggingface_hub` calls to create, upload and download.

Metadata, regular files and commits go through the REST API, large files through Git LFS (`HF_HUB_DISABLE_XET=1`) or
through Xet (see `xet_store`). Everything a client sends is kept, so that a test can look for what must not be there.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from xet_store import XetStore

TOKEN = "hf_" + "SeCrEtOfTheTests" * 2
"""The only valid token, that of the user `me`, who may write to the namespace `me` and nowhere else."""

_LARGE = (".safetensors", ".bin", ".pt", ".pth", ".png")


@dataclass
class Repo:
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=lambda: ["initial commit"])
    private: bool = False

    @property
    def head(self) -> str:
        return hashlib.sha1(f"{self.commits}".encode()).hexdigest()

    def oid(self, path: str) -> str:
        content = self.files[path]
        if path.endswith(_LARGE):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str = "", code: str = "", **headers: str) -> None:
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


class Hub:
    """State of the server.

    `fail_with` maps a regular expression over `METHOD path` to the status that such requests get. `received` holds
    each request as it came, but for its Authorization header.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.xet = XetStore()
        self.fail_with: dict[str, int] = {}
        self.received: list[bytes] = []
        self.url = ""
        self._lock = threading.Lock()

    def environment(self, home: Any, xet: bool = False, token: str | None = None) -> dict[str, str]:
        """Environment of a client process that knows this Hub and no other, with its cache under `home`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        proxies = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        client = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        client |= {"HF_XET_XORB_COMPRESSION_POLICY": "none"} if xet else {"HF_HUB_DISABLE_XET": "1"}
        client |= {} if token is None else {"HF_TOKEN": token}
        return {**inherited, **proxies, **client}

    # ---- What a request gets: status, headers and body -----------------------------------------------------------

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        with self._lock:
            sent = "".join(f"{k}: {v}\n" for k, v in headers.items() if k.lower() != "authorization")
            self.received.append(f"{method} {path}\n{sent}\n".encode() + body)
            for pattern, status in self.fail_with.items():
                if re.search(pattern, f"{method} {path}"):
                    raise RefusedError(status, "Sorry, something is wrong with this server")
            path = urlsplit(path).path
            for pattern, route in _ROUTES.items():
                matched = re.fullmatch(pattern, f"{method} {path}")
                if matched:
                    given = {name: unquote(value) for name, value in matched.groupdict().items()}
                    return route(self, headers, body, **given)
            raise RefusedError(404, f"no route for {method} {path}")

    def _user(self, headers: Any) -> str | None:
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return "me" if token else None

    def _may_write(self, headers: Any, repo: str) -> None:
        user = self._user(headers)
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        if repo.split("/")[0] != user:
            raise RefusedError(403, f"You don't have the rights to write to {repo}")

    def _repo(self, repo: str, headers: Any) -> Repo:
        found = self.repos.get(repo)
        if found is None or (found.private and self._user(headers) is None):
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        return found

    def whoami(self, headers: Any, body: bytes) -> Any:
        user = self._user(headers)
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        return _json({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    def create(self, headers: Any, body: bytes) -> Any:
        wanted = json.loads(body)
        repo = f"{wanted['organization'] or self._user(headers)}/{wanted['name']}"
        self._may_write(headers, repo)
        if repo in self.repos:
            return _json({"url": f"{self.url}/{repo}"}, 409)
        self.repos[repo] = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return _json({"url": f"{self.url}/{repo}"})

    def validate(self, headers: Any, body: bytes) -> Any:
        """The metadata rules of the Hub that concern a model card."""
        errors = card_errors(json.loads(body)["content"])
        return _json({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    def preupload(self, headers: Any, body: bytes, repo: str, revision: str) -> Any:
        self._may_write(headers, repo)
        known = self._repo(repo, headers)
        files = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(_LARGE) else "regular"
            oid = known.oid(path) if path in known.files else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return _json({"files": files})

    def lfs_batch(self, headers: Any, body: bytes, repo: str) -> Any:
        self._may_write(headers, repo)
        objects = []
        for item in json.loads(body)["objects"]:
            actions = {"upload": {"href": f"{self.url}/blobs/{item['oid']}"}}
            actions["verify"] = {"href": f"{self.url}/{repo}.git/info/lfs/verify"}
            objects.append({**item, **({} if item["oid"] in self.blobs else {"actions": actions})})
        return _json({"transfer": "basic", "objects": objects})

    def put_blob(self, headers: Any, body: bytes, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusedError(400, "the content is not that of its oid")
        self.blobs[oid] = body
        return _json({})

    def verify_blob(self, headers: Any, body: bytes, repo: str) -> Any:
        wanted = json.loads(body)
        if len(self.blobs.get(wanted["oid"], b"")) != wanted["size"]:
            raise RefusedError(400, "there is no such object")
        return _json({})

    def commit(self, headers: Any, body: bytes, repo: str, revision: str) -> Any:
        self._may_write(headers, repo)
        known, changed = self._repo(repo, headers), {}
        summary = ""
        for line in body.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "header":
                summary = value["summary"]
            elif kind == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                content = self.blobs.get(value["oid"]) or self.xet.content(value["oid"])
                if content is None:
                    raise RefusedError(400, f"{value['path']} was not uploaded")
                self.blobs[value["oid"]] = changed[value["path"]] = content
            else:
                raise RefusedError(400, f"this server knows no {kind}")
        known.files.update(changed)
        known.commits.append(summary)
        url = f"{self.url}/{repo}/commit/{known.head}"
        return _json({"success": True, "commitUrl": url, "commitOid": known.head})

    def info(self, headers: Any, body: bytes, repo: str) -> Any:
        known = self._repo(repo, headers)
        siblings = [{"rfilename": path} for path in sorted(known.files)]
        data = {"_id": "0", "id": repo, "modelId": repo, "sha": known.head, "private": known.private, "tags": []}
        return _json({**data, "siblings": siblings})

    def tree(self, headers: Any, body: bytes, repo: str, revision: str, folder: str = "") -> Any:
        known, prefix = self._repo(repo, headers), f"{folder}/" if folder else ""
        found = {path: content for path, content in known.files.items() if path.startswith(prefix)}
        if not found and folder:
            raise RefusedError(404, "there is no such folder", "EntryNotFound")
        files = [{"type": "file", "path": p, "size": len(c), "oid": known.oid(p)} for p, c in sorted(found.items())]
        return _json(files)

    def resolve(self, headers: Any, body: bytes, repo: str, revision: str, path: str) -> Any:
        known = self._repo(repo, headers)
        commit = {"X-Repo-Commit": known.head}
        if path not in known.files:
            raise RefusedError(404, "Entry not found", "EntryNotFound", **commit)
        oid = known.oid(path)
        answer = {**commit, "ETag": f'"{oid}"', "Content-Type": "application/octet-stream"}
        if oid in self.xet.hashes:
            route = f"{self.url}/api/models/{repo}/xet-read-token/{revision}"
            answer |= {"X-Xet-Hash": self.xet.hashes[oid], "X-Xet-Refresh-Route": route}
        return 200, answer, known.files[path]

    def xet_token(self, headers: Any, body: bytes, repo: str, kind: str, revision: str) -> Any:
        if kind == "write":
            self._may_write(headers, repo)
        token, until, url = "a-token-of-the-store", 2**33, f"{self.url}/xet"
        status, answer, body = _json({"accessToken": token, "exp": until, "casUrl": url})  # hf_xet reads the body,
        answer |= {"X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(until), "X-Xet-Cas-Url": url}
        return status, answer, body  # and huggingface_hub the headers

    def xet_request(self, headers: Any, body: bytes, method: str, path: str) -> Any:
        return self.xet.answer(f"{method} {path}", body, f"{self.url}/xet", headers)


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES: dict[str, Callable[..., tuple[int, dict[str, str], bytes]]] = {
    r"GET /api/whoami-v2": Hub.whoami,
    r"POST /api/repos/create": Hub.create,
    r"POST /api/validate-yaml": Hub.validate,
    rf"POST /api/models/{_REPO}/preupload/(?P<revision>.+)": Hub.preupload,
    rf"POST /{_REPO}\.git/info/lfs/objects/batch": Hub.lfs_batch,
    rf"POST /{_REPO}\.git/info/lfs/verify": Hub.verify_blob,
    r"PUT /blobs/(?P<oid>\w+)": Hub.put_blob,
    rf"POST /api/models/{_REPO}/commit/(?P<revision>.+)": Hub.commit,
    rf"GET /api/models/{_REPO}(?:/revision/[^/]+)?": Hub.info,
    rf"GET /api/models/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?": Hub.tree,
    rf"(?:GET|HEAD) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": Hub.resolve,
    rf"GET /api/models/{_REPO}/xet-(?P<kind>read|write)-token/(?P<revision>.+)": Hub.xet_token,
    r"(?P<method>\w+) /xet(?P<path>/.*)": Hub.xet_request,
}


def card_errors(content: str) -> list[str]:
    """What the Hub would refuse in the metadata of this model card."""
    block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if block is None:
        return ["there is no metadata"]
    data = yaml.safe_load(block[1])
    errors = [f"{key} is not a list of texts" for key in ("tags", "datasets", "metrics") if not _texts(data.get(key))]
    for name in [data.get("base_model"), *(data.get("datasets") or [])]:
        if name is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            errors.append(f"{name} is no name on the Hub")
    for language in data.get("language") or []:
        if not re.fullmatch(r"[a-z]{2,3}", language):
            errors.append(f"{language} is no language")
    if "model-index" in data:
        try:
            model_index_to_eval_results(data["model-index"])
        except (KeyError, TypeError) as error:
            errors.append(f"model-index lacks {error}")
    return errors


def _texts(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _json(content: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self._body()
            try:
                status, headers, content = hub.answer(self.command, self.path, self.headers, body)
            except RefusedError as error:
                status, headers, content = error.status, error.headers, json.dumps({"error": error.message}).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A Hub that answers at `url` until the context ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
