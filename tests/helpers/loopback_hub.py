"""A Hub of one user on the loopback interface: enough of its HTTP interface to create, upload, list and download.

    with LoopbackHub() as hub:
        subprocess.run([...], env={**os.environ, **hub.environment(tmp_path)})
        hub.files["user/name"]["config.json"]

    hub.faults = [["POST", "/commit/", 500, 2]]  # the next two commits get a 500
    hub.tokens["hf_other"] = "read"  # who else may do what; a repository in hub.private is shown to these alone

Instead of a status, "cut" closes the connection within the request, "lost" does what is asked and closes it before the
answer, and a function is called before the request is answered. Files are kept in memory, of the newest commit alone.
The client runs in a process of its own, since huggingface_hub reads HF_ENDPOINT at import.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_loopback"
REPOSITORIES = (["api", "models"], ["api", "datasets"])


class LoopbackHub:
    def __init__(self, files=None):
        self.files: dict[str, dict[str, bytes]] = dict(files or {})  # repository → path → content
        self.large: dict[str, bytes] = {}  # hash → content, of files that are uploaded before they are committed
        self.large_names = re.compile(r"datasets .*\.parquet")  # of which files these are: kind of repository and name
        self.private: set[str] = set()
        self.tokens = {TOKEN: "write"}
        self.faults: list[list] = []  # method, pattern of the path, what happens, how often
        self.commits: list[str] = []  # summaries
        self.requests: list[str] = []  # method and path, those that failed too
        self.unanswered: list[str] = []  # requests that this Hub does not know

    def __enter__(self):
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    @property
    def head(self):
        """The hash of the newest commit, of whatever repository."""
        return f"{len(self.commits):040x}"

    def fault(self, method, path):
        """What goes wrong with this request, if anything."""
        for fault in self.faults:
            if fault[0] == method and re.search(fault[1], path) and fault[3] > 0:
                fault[3] -= 1
                return fault[2]
        return None

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def environment(self, home):
        """Variables under which a process talks to this Hub alone, with a cache of its own."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1"}  # fmt: skip


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(name, content):
    """A file as the Hub lists it."""
    return {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}


def card_problems(content):
    """What the Hub would find wrong with a model card's metadata, as far as its documentation says."""
    metadata = yaml.safe_load(content.split("---\n")[1])
    wanted = {"task": ("type",), "dataset": ("type", "name"), "metrics": ("type", "value")}
    problems = []
    for model in metadata.get("model-index", []):
        problems += (
            [] if model.get("name") and model.get("results") else ["a model of model-index has no name or results"]
        )
        for result in model.get("results") or []:
            for part, keys in wanted.items():
                entries = result.get(part) if part == "metrics" else [result.get(part) or {}]
                problems += [f"{part} lacks {key}" for entry in entries or [{}] for key in keys if key not in entry]
    return problems


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer goes out whole: the client's system would wait 40 ms for the second half of one

    def log_message(self, *arguments):
        pass

    def handle_one_request(self):
        """As the base class, but that a request may fail first."""
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def parse_request(self):
        if not super().parse_request():
            return False
        self.hub.requests.append(f"{self.command} {self.path}")
        fault = self.hub.fault(self.command, unquote(self.path))
        self.is_lost = fault == "lost"
        if callable(fault):
            fault()
        elif fault == "cut":
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.hang_up()
        elif isinstance(fault, int):
            self.body()
            self.reply({"error": "a fault"}, fault, send_body=self.command != "HEAD")
        return callable(fault) or fault in (None, "lost")

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def reply(self, content, status=200, headers=(), send_body=True):
        if self.is_lost:
            return self.hang_up()
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", self.hub.head)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if send_body:
            self.wfile.write(content)
        self.wfile.flush()

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def may(self, role, repository=None, send_body=True):
        """Whether the token allows it; else the answer is given."""
        given = self.hub.tokens.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        if given == "write" or (role == "read" and (given or repository not in self.hub.private)):
            return True
        if given is None:
            message = "Invalid credentials in Authorization header" if role == "write" else "Unauthorized"
            self.reply({"error": message}, 401, [("X-Error-Message", message)], send_body)
        else:
            self.reply({"error": "read only"}, 403, [("X-Error-Message", "read only")], send_body)
        return False

    def do_POST(self):
        path, body = unquote(urlsplit(self.path).path), self.body()
        parts = path.strip("/").split("/")
        repository = "/".join(parts[2:4])
        if path == "/api/validate-yaml":
            problems = [{"message": problem} for problem in card_problems(json.loads(body)["content"])]
            self.reply({"errors": problems, "warnings": []}, 400 if problems else 200)
        elif parts[:1] == ["api"] and parts[4:5] == ["paths-info"]:
            wanted = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
            files = self.hub.files.get(repository, {})
            self.reply([entry(name, files[name]) for name in wanted if name in files])
        elif not self.may("write"):
            pass
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif parts[:2] in REPOSITORIES and repository in self.hub.files and parts[4] == "preupload":
            self.reply({"files": [self.upload_of(file["path"], parts[1]) for file in json.loads(body)["files"]]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [self.with_action(own) for own in json.loads(body)["objects"]]
            self.reply({"transfer": "basic", "objects": objects})
        elif parts[:2] in REPOSITORIES and repository in self.hub.files and parts[4] == "commit":
            self.commit(repository, [json.loads(line) for line in body.decode().splitlines()])
        else:
            self.unknown()

    def create(self, wanted):
        repository = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        about = {"url": f"{self.hub.endpoint}/{repository}", "name": repository}
        if repository in self.hub.files:
            return self.reply({**about, "error": "You already created this model repo"}, 409)
        self.hub.files[repository] = {".gitattributes": b""}
        if wanted.get("visibility") == "private":
            self.hub.private.add(repository)
        self.reply(about)

    def upload_of(self, name, kind):
        """How a file is to be uploaded, and what is there already under its name."""
        there = self.hub.files["/".join(unquote(self.path).split("/")[3:5])].get(name)
        is_large = bool(self.hub.large_names.fullmatch(f"{kind} {name}"))
        oid = None if there is None else hashlib.sha256(there).hexdigest() if is_large else git_hash(there)
        return {"path": name, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}

    def with_action(self, wanted):
        if wanted["oid"] in self.hub.large:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}}}

    def commit(self, repository, lines):
        """All of it or nothing."""
        header, files = lines[0]["value"], dict(self.hub.files[repository])
        if header.get("parentCommit") not in (None, self.hub.head):
            return self.reply({"error": "A commit has happened since. Please refresh and try again."}, 412)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    return self.reply({"error": "A file with this name doesn't exist"}, 404)
            elif line["key"] == "deletedFolder":
                files = {name: own for name, own in files.items() if not name.startswith(value["path"])}
        self.hub.files[repository] = files
        self.hub.commits.append(header["summary"])
        url = f"{self.hub.endpoint}/{repository}/commit/{self.hub.head}"
        self.reply({"success": True, "commitUrl": url, "commitOid": self.hub.head})

    def do_PUT(self):
        self.hub.large[self.path.rsplit("/", 1)[1]] = self.body()
        self.reply({})

    def do_GET(self, send_body=True):
        path = unquote(urlsplit(self.path).path)
        parts = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            self.reply({"name": "user", "type": "user", "orgs": [], "auth": {}}, send_body=send_body)
        elif parts[:2] in REPOSITORIES and "/".join(parts[2:4]) in self.hub.files:
            if self.may("write" if parts[4:] == ["auth-check", "write"] else "read", "/".join(parts[2:4]), send_body):
                self.describe("/".join(parts[2:4]), parts[4:], send_body)
        elif "resolve" in parts:
            place = parts.index("resolve")
            repository = "/".join(parts[place - 2 : place])
            if self.may("read", repository, send_body):
                self.download(self.hub.files.get(repository, {}).get("/".join(parts[place + 2 :])), send_body)
        else:
            self.unknown(send_body)

    def do_HEAD(self):
        self.do_GET(send_body=False)

    def describe(self, repository, rest, send_body):
        files = self.hub.files[repository]
        if rest[:1] == ["auth-check"]:
            self.reply({}, send_body=send_body)
        elif rest[:1] == ["revision"] and rest[1] not in ("main", self.hub.head):
            self.reply(b"", 404, [("X-Error-Code", "RevisionNotFound")], send_body)
        elif rest[:1] == ["tree"]:
            prefix = "".join(f"{part}/" for part in rest[2:])
            below = {name: content for name, content in files.items() if name.startswith(prefix)}
            if prefix and not below:
                return self.reply(b"", 404, [("X-Error-Code", "EntryNotFound")], send_body)
            if "recursive=true" not in urlsplit(self.path).query.lower():
                folders = {prefix + name[len(prefix) :].split("/")[0] for name in below if "/" in name[len(prefix) :]}
                below = {name: content for name, content in below.items() if "/" not in name[len(prefix) :]}
                tree = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in folders]
                self.reply(tree + [entry(*item) for item in below.items()], send_body=send_body)
            else:
                self.reply([entry(*item) for item in below.items()], send_body=send_body)
        else:
            siblings = [{"rfilename": name} for name in files]
            about = {
                "id": repository,
                "sha": self.hub.head,
                "siblings": siblings,
                "private": repository in self.hub.private,
                "tags": [],
                "downloads": 0,
            }
            self.reply({**about, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"}, send_body=send_body)

    def download(self, content, send_body):
        if content is None:
            self.reply(b"", 404, [("X-Error-Code", "EntryNotFound")], send_body)
        else:
            self.reply(content, headers=[("ETag", f'"{git_hash(content)}"')], send_body=send_body)

    def unknown(self, send_body=True):
        self.hub.unanswered.append(f"{self.command} {self.path}")
        self.reply(b"", 404, [("X-Error-Code", "RepoNotFound")], send_body)
