"""A Hub of one user on the loopback interface: enough of its HTTP interface to create, upload, list and download.

    with LoopbackHub() as hub:
        subprocess.run([...], env={**os.environ, **hub.environment(tmp_path)})
        hub.files["user/name"]["config.json"]

Files are kept in memory. The client runs in a process of its own, since huggingface_hub reads HF_ENDPOINT at import.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0" * 40
REPOSITORIES = (["api", "models"], ["api", "datasets"])


class LoopbackHub:
    def __init__(self, files=None):
        self.files: dict[str, dict[str, bytes]] = dict(files or {})  # repository → path → content
        self.large: dict[str, bytes] = {}  # hash → content, of files that are uploaded before they are committed
        self.unanswered: list[str] = []  # requests that this Hub does not know

    def __enter__(self):
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def environment(self, home):
        """Variables under which a process talks to this Hub alone, with a cache of its own."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_loopback", "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1"}  # fmt: skip


def entry(name, content):
    """A file as the Hub lists it."""
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def reply(self, content, status=200, headers=(), send_body=True):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if send_body:
            self.wfile.write(content)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self):
        path, body = unquote(urlsplit(self.path).path), self.body()
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repository = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
            self.hub.files.setdefault(repository, {})
            self.reply({"url": f"{self.hub.endpoint}/{repository}", "name": repository})
        elif path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif parts[:2] in REPOSITORIES and parts[4] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {n: "lfs" if n.endswith(".parquet") and parts[1] == "datasets" else "regular" for n in names}
            self.reply({"files": [{"path": n, "uploadMode": modes[n], "shouldIgnore": False} for n in names]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [{"upload": {"href": f"{self.hub.endpoint}/lfs/{own['oid']}"}} for own in objects]
            self.reply({
                "transfer": "basic",
                "objects": [{**own, "actions": action} for own, action in zip(objects, actions, strict=True)],
            })  # fmt: skip
        elif parts[:2] in REPOSITORIES and parts[4] == "commit":
            for line in body.decode().splitlines():
                entry = json.loads(line)
                value, files = entry["value"], self.hub.files["/".join(parts[2:4])]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
            url = f"{self.hub.endpoint}/{'/'.join(parts[2:4])}/commit/{COMMIT}"
            self.reply({"success": True, "commitUrl": url, "commitOid": COMMIT})
        elif parts[:1] == ["api"] and parts[4:5] == ["paths-info"]:
            wanted = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
            files = self.hub.files.get("/".join(parts[2:4]), {})
            self.reply([entry(name, files[name]) for name in wanted if name in files])
        else:
            self.unknown()

    def do_PUT(self):
        self.hub.large[self.path.rsplit("/", 1)[1]] = self.body()
        self.reply({})

    def do_GET(self, send_body=True):
        path = unquote(urlsplit(self.path).path)
        parts = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            self.reply({"name": "user", "type": "user", "orgs": [], "auth": {}}, send_body=send_body)
        elif parts[:2] in REPOSITORIES and "/".join(parts[2:4]) in self.hub.files:
            self.describe("/".join(parts[2:4]), parts[4:], send_body)
        elif "resolve" in parts:
            place = parts.index("resolve")
            repository = "/".join(parts[place - 2 : place])
            self.download(self.hub.files.get(repository, {}).get("/".join(parts[place + 2 :])), send_body)
        else:
            self.unknown(send_body)

    def do_HEAD(self):
        self.do_GET(send_body=False)

    def describe(self, repository, rest, send_body):
        files = self.hub.files[repository]
        if rest[:1] == ["tree"]:
            prefix = "".join(f"{part}/" for part in rest[2:])
            below = {name: content for name, content in files.items() if name.startswith(prefix)}
            if prefix and not below:
                return self.reply(b"", 404, [("X-Error-Code", "EntryNotFound")], send_body)
            if "recursive=true" not in urlsplit(self.path).query.lower():
                folders = {prefix + name[len(prefix) :].split("/")[0] for name in below if "/" in name[len(prefix) :]}
                below = {name: content for name, content in below.items() if "/" not in name[len(prefix) :]}
                tree = [{"type": "directory", "path": folder, "oid": COMMIT, "size": 0} for folder in folders]
                self.reply(tree + [entry(*item) for item in below.items()], send_body=send_body)
            else:
                self.reply([entry(*item) for item in below.items()], send_body=send_body)
        else:
            siblings = [{"rfilename": name} for name in files]
            about = {
                "id": repository,
                "sha": COMMIT,
                "siblings": siblings,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            self.reply({**about, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"}, send_body=send_body)

    def download(self, content, send_body):
        if content is None:
            self.reply(b"", 404, [("X-Error-Code", "EntryNotFound")], send_body)
        else:
            self.reply(content, headers=[("ETag", f'"{hashlib.sha1(content).hexdigest()}"')], send_body=send_body)

    def unknown(self, send_body=True):
        self.hub.unanswered.append(f"{self.command} {self.path}")
        self.reply(b"", 404, [("X-Error-Code", "RepoNotFound")], send_body)
