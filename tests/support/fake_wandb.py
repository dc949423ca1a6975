"""A W&B server on this machine, in as much as wandb asks one here: what it was sent can be looked at."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeServer(ThreadingHTTPServer):
    """`status` other than 200 is the answer to everything that is posted."""

    daemon_threads = True

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.runs: list[dict[str, Any]] = []
        """Variables of every mutation that made or changed a run."""
        self.artifacts: dict[str, dict[str, Any]] = {}
        """By name: type, metadata, and the digests of the files by path."""
        self.files: dict[str, bytes] = {}
        """What was uploaded, by name; artifacts' files as ARTIFACT/PATH."""
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.charts: dict[str, Any] = {}
        self.views: dict[str, Any] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error."""

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpsertBucket":
            self.runs.append(given)
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "us"}}
            bucket = {"id": "b", "name": given["name"], "displayName": given["displayName"], "config": "{}"}
            bucket |= {"historyLineCount": 0, "sweepName": given["sweep"], "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateArtifact":
            wanted = given["input"]
            name = wanted["artifactCollectionName"]
            metadata = json.loads(wanted.get("metadata") or "{}")
            self.artifacts[name] = {"type": wanted["artifactTypeName"], "metadata": metadata}
            sequence = {"id": "s", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": name, "state": "PENDING", "artifactSequence": sequence}}}
        if operation in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            key = operation[0].lower() + operation[1:]
            return {key: {"artifactManifest": {"id": "m", "file": self.upload("manifest")}}}
        if operation == "CreateArtifactFiles":
            files = given["input"]["artifactFiles"]
            nodes = [{"node": self.upload(f["name"], f["artifactID"])} for f in files]
            return {"createArtifactFiles": {"files": {"edges": nodes}}}
        if operation == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if operation == "CreateCustomChart":
            self.charts[given["chartName"]] = json.loads(given["spec"])
            return {"createCustomChart": {"chart": {"id": f"{given['entity']}/{given['chartName']}"}}}
        if "displayName" in given:  # upsertView, which comes without an operation's name
            self.views[given["displayName"]] = json.loads(given["spec"])
            view = {"id": "v", "name": given["name"], "displayName": given["displayName"], "spec": given["spec"]}
            return {"upsertView": {"view": view, "inserted": True}}
        viewer = {"id": "u", "username": "us", "entity": "us", "flags": "{}", "teams": {"edges": []}}
        return {"serverInfo": {"features": []}, "viewer": viewer}

    def upload(self, name: str, artifact: str = "") -> dict[str, Any]:
        path = f"{artifact}/{name}" if artifact else name
        return {
            "id": path, "name": name, "displayName": name, "storagePath": path, "uploadHeaders": [],
            "uploadUrl": f"{self.url}/upload/{path}", "uploadMultipartUrls": None, "artifact": {"id": artifact},
        }  # fmt: skip

    def stream(self, files: dict[str, dict[str, Any]]) -> None:
        self.history += [json.loads(line) for line in files.get("wandb-history.jsonl", {}).get("content", [])]
        for line in files.get("wandb-summary.json", {}).get("content", []):
            self.summary = json.loads(line)


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.reply({})

    def do_PUT(self) -> None:
        self.server.files[self.path.removeprefix("/upload/")] = self.body()
        self.reply({})

    def do_POST(self) -> None:
        body = self.body()
        if self.server.status != 200:
            self.reply({"errors": [{"message": "refused"}]}, self.server.status)
        elif self.path == "/graphql":
            asked = json.loads(body)
            self.reply({"data": self.server.answer(asked.get("operationName", ""), asked.get("variables") or {})})
        else:
            if self.path.endswith("/file_stream"):
                self.server.stream(json.loads(body).get("files") or {})
            self.reply({})

    def body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def reply(self, value: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(status: int = 200) -> Iterator[FakeServer]:
    with FakeServer(status) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
