"""A real browser: a review is driven by keyboard to its end."""

import json
import threading
from contextlib import contextmanager

import pytest

from famus_hf.cli import review as script
from famus_hf.data.labels.decisions import read_decisions
from famus_hf.review.journal import Journal
from famus_hf.review.server import ReviewServer
from tests.helpers import browser as browsers
from tests.helpers.browser import keys, needs_driver, text_of, until
from tests.helpers.reviews import photos_and_run, truth_of

ENTER, RIGHT = "\ue007", "\ue014"

pytestmark = needs_driver


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsers.opened(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    data, run, _ = photos_and_run(tmp_path_factory.mktemp("case"))
    options = script.build_parser("review").parse_args([str(run), "--random", "3"])
    return run, script.review_of(options), data


@contextmanager
def served(review, path, port=0):
    with ReviewServer(review, Journal(path, review.data), port=port) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def decided(browser, count):
    until(browser, lambda: text_of(browser, "progress").startswith(f"{count} of "))


def requested(browser):
    """The addresses that pages have asked for since this was called last."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    return {url for url in urls if not url.startswith("chrome")}  # its own page of a new tab


def test_a_review_by_keyboard_from_the_first_example_to_the_last(browser, case, tmp_path):
    _, review, _ = case
    path, total = tmp_path / "decisions.csv", len(review.suspects)
    with served(review, path) as server:
        requested(browser)
        browser.get(server.address)
        decided(browser, 0)
        for key, count in ((ENTER, 1), (" ", 2), ("3", 3), ("z", 2)):  # suggestion, kept, third class, undone
            keys(browser, key)
            decided(browser, count)
        made = list(read_decisions(path))
        assert [own.key for own in made] == [own.key for own in review.suspects[:2]]
        assert made[0].reviewed_label == review.suspects[0].suggested_label == truth_of(made[0].example)
        assert made[1].reviewed_label == review.suspects[1].label
        keys(browser, "/", "c", "o", "w", ENTER, "s")  # a class by a part of its name; then the sheet
        decided(browser, 3)
        assert list(read_decisions(path))[2].reviewed_label == "cow"
        assert len(browser.find_elements("css selector", ".sheet li")) == min(24, total)
        keys(browser, "2")
        decided(browser, 4)
        browser.get(server.address)  # the tab was closed
        decided(browser, 4)
        keys(browser, "z")  # of the last session
        decided(browser, 3)
        for count in range(4, total + 1):
            keys(browser, " " if browser.find_elements("css selector", "#accept[hidden]") else ENTER)
            decided(browser, count)
        assert text_of(browser, "main") == "All of these are reviewed."
        assert {url.split("?")[0].split("/", 3)[2] for url in requested(browser) if not url.startswith("data:")} == {
            f"127.0.0.1:{server.server_port}"
        }
    assert {own.key for own in read_decisions(path)} == {own.key for own in review.suspects}
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_pair_of_classes_can_be_chosen_and_another_reviewer_is_told_of(browser, case, tmp_path):
    _, review, _ = case
    path, suspect = tmp_path / "decisions.csv", review.suspects[1]
    pair = suspect.label, suspect.suggested_label
    first = next(own for own in review.suspects if (own.label, own.suggested_label) == pair)
    with served(review, path) as server:
        browser.get(server.address)
        decided(browser, 0)
        browser.execute_script(
            "const e = document.getElementById('group'); e.value = arguments[0]; e.dispatchEvent(new Event('change'))",
            " → ".join(pair),
        )
        assert first.example in text_of(browser, "main")
        Journal(path, review.data).record(first.key, first.decided("cow"), None)
        keys(browser, " ")
        until(browser, lambda: "another reviewer has made" in text_of(browser, "message"))
        assert "decided: cow" in text_of(browser, "main")
    assert [own.reviewed_label for own in read_decisions(path)] == ["cow"]


def test_an_image_that_has_gone_is_not_decided_and_others_are(browser, case, tmp_path):
    _, review, data = case
    first = review.suspects[0]
    (data / first.example).rename(data / "gone")
    with served(review, tmp_path / "decisions.csv") as server:
        browser.get(server.address)
        decided(browser, 0)
        keys(browser, ENTER)
        until(browser, lambda: f"{first.example} can't be read any more" in text_of(browser, "message"))
        keys(browser, RIGHT, ENTER)
        decided(browser, 1)
    (data / "gone").rename(data / first.example)
    assert [own.key for own in read_decisions(tmp_path / "decisions.csv")] == [review.suspects[1].key]


def test_where_the_server_has_ended_nothing_counts_as_decided(browser, case, tmp_path):
    _, review, _ = case
    with served(review, tmp_path / "decisions.csv") as server:
        browser.get(server.address)
        until(browser, lambda: browser.execute_script("return document.querySelector('#main img').naturalWidth > 0"))
    keys(browser, " ")
    until(browser, lambda: "Not saved, as the server does not answer" in text_of(browser, "message"))
    assert text_of(browser, "progress").startswith("0 of ") and not (tmp_path / "decisions.csv").exists()


def test_the_static_page_keeps_decisions_and_gives_the_same_file(browser, case, tmp_path, tmp_path_factory):
    run, review, _ = case
    page = tmp_path / "review.html"
    script.main([str(run), "--static", str(page), "--random", "3"])
    browser.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    requested(browser)
    browser.get(page.as_uri())
    decided(browser, 0)
    keys(browser, ENTER, " ", "1")
    decided(browser, 3)
    browser.get(page.as_uri())
    decided(browser, 3)
    assert not {url for url in requested(browser) if not url.startswith(("data:", page.as_uri()))}
    browser.find_element("id", "download").click()
    until(browser, lambda: (tmp_path / "decisions.csv").is_file())
    expected = [review.suspects[0].suggested_label, review.suspects[1].label, "ant"]
    assert list(read_decisions(tmp_path / "decisions.csv")) == [
        own.decided(label) for own, label in zip(review.suspects, expected, strict=False)
    ]
