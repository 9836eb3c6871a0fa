"""Who may ask the review server for what, and what its page may do."""

import http.client
import json
import threading
from contextlib import contextmanager

import pytest

from famus_hf.data.fingerprint import fingerprint_of_splits
from famus_hf.data.labels.class_names import occurring_names
from famus_hf.errors import SettingsError
from famus_hf.reporting.label_report import read_report
from famus_hf.review.journal import Journal
from famus_hf.review.page import Examples, Review
from famus_hf.review.server import ReviewServer, is_loopback
from famus_hf.review.suspects import suspects_of
from famus_hf.storage.run_folder import REPORT_FILE
from tests.helpers.reviews import photos_and_run


@pytest.fixture(scope="module")
def review(tmp_path_factory):
    _, run, splits = photos_and_run(tmp_path_factory.mktemp("server"))
    suspects = suspects_of(read_report(run / REPORT_FILE), 100)
    return Review("run", occurring_names(splits["train"]), suspects, Examples(splits), fingerprint_of_splits(splits))


@contextmanager
def served(review, folder, host="127.0.0.1"):
    with ReviewServer(review, Journal(folder / "decisions.csv", review.data), host) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def asked(server, method, path, body=None, **headers):
    """Status, headers and content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


DECISION = {"place": 0, "label": "bee", "before": None}


def test_the_page_and_its_images_are_shown_and_decisions_written(review, tmp_path):
    with served(review, tmp_path) as server:
        assert server.address == f"http://127.0.0.1:{server.server_port}/"
        status, _, page = asked(server, "GET", "/")
        assert status == 200 and server.token in page.decode()
        assert asked(server, "GET", "/media/0")[2].startswith(b"\x89PNG")
        status, _, content = asked(server, "POST", "/decisions", DECISION, X_Review_Token=server.token)
        assert (status, json.loads(content)) == (200, {"decided": 1})
        assert [own.key for own in server.journal.read()] == [review.suspects[0].key]
        status, _, content = asked(server, "POST", "/decisions", DECISION, X_Review_Token=server.token)
        assert status == 409 and json.loads(content)["present"] == "bee"


def test_the_page_may_load_nothing_from_elsewhere(review, tmp_path):
    with served(review, tmp_path) as server:
        _, headers, page = asked(server, "GET", "/")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert "http" not in policy and "frame-ancestors 'none'" in policy
    text = page.decode().replace("http-equiv", "")
    assert "http" not in text and "//" not in text.replace("// ", "").replace("/** ", "")
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "method, headers, sentence",
    [
        ("GET", {"Host": "evil.example"}, "not known by that name"),
        ("POST", {}, "the token is missing"),
        ("POST", {"X_Review_Token": "guessed"}, "the token is missing or of an earlier start"),
        ("POST", {"X_Review_Token": "TOKEN", "Origin": "http://evil.example"}, "another site has sent this"),
        ("GET", {"Origin": "null"}, "another site has sent this"),
    ],
)
def test_requests_of_others_are_refused_and_change_nothing(review, tmp_path, method, headers, sentence):
    with served(review, tmp_path) as server:
        headers = {name: value.replace("TOKEN", server.token) for name, value in headers.items()}
        status, _, content = asked(server, method, "/decisions", DECISION, **headers)
        assert status == 403 and sentence in json.loads(content)["error"]
        assert not server.journal.path.exists()


def test_beyond_the_loopback_interface_every_request_needs_the_token(review, tmp_path):
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.0.7") and not is_loopback("my-machine")
    with served(review, tmp_path, host="0.0.0.0") as server:
        assert server.address.endswith(f"?token={server.token}")
        for path in ("/", "/media/0", "/?token=guessed"):
            assert asked(server, "GET", path)[0] == 403
        for path in ("/", "/media/0"):
            assert asked(server, "GET", f"{path}?token={server.token}")[0] == 200


def test_a_port_that_is_taken_is_refused_in_one_sentence(review, tmp_path):
    with served(review, tmp_path) as server, pytest.raises(SettingsError, match="choose another"):
        ReviewServer(review, server.journal, port=server.server_port)


@pytest.mark.parametrize("wanted", [None, [], {"place": -1, "label": "bee"}, {"place": 10**6}, {"place": True},
                                    {"place": 0, "label": "dog"}, {"place": 0, "label": ["bee"]}])  # fmt: skip
def test_what_is_no_decision_is_refused_in_one_sentence(review, tmp_path, wanted):
    with served(review, tmp_path) as server:
        status, _, content = asked(server, "POST", "/decisions", wanted, X_Review_Token=server.token)
        assert status == 400 and json.loads(content)["error"].startswith("Not saved: ")
        assert not server.journal.path.exists()
        for path in ("/media/999999", "/media/x", "/../secret", "/media/"):
            assert asked(server, "GET", path)[0] == 404
