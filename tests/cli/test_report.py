"""The page about a run: a real browser shows all that it says, and fetches nothing."""

import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from famus_hf.cli import report as script
from famus_hf.reporting import page as pages
from famus_hf.reporting.label_report import label_report
from famus_hf.reporting.shown import picture
from famus_hf.storage.run_folder import REPORT_FILE

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium (Debian's package chromium)")


def opened(page, folder, *flags):
    """The page's document once the browser has laid it out, and the addresses that the page asked for."""
    log = folder / "net.json"
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}", "--window-size=1000,4000", *flags, "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    text = log.read_text().rstrip()
    events = json.loads(text.rstrip(",") + "]}" if text.endswith(",") else text)  # the end is not always written
    asked = [event.get("params", {}) for event in events["events"]]
    # The browser's own requests, for its updates, have no page as their origin.
    return result.stdout, {own["url"] for own in asked if own.get("initiator", "not an origin") != "not an origin"}


@needs_browser
def test_a_browser_shows_the_page_and_fetches_nothing(compared_runs, tmp_path):
    page = tmp_path / "page.html"
    beside = [str(compared_runs / name) for name in ("own-plain", "own-mw-net")]
    script.main([str(compared_runs / "own"), "--beside", *beside, "--out", str(page)])
    document, asked = opened(page, tmp_path, f"--screenshot={tmp_path / 'page.png'}")
    assert asked == set()
    assert not re.search(r"https?://|<script|<link|<iframe", document)
    results = json.loads((compared_runs / "own" / "all_results.json").read_text())
    words = html.unescape(re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]*>", " ", document, flags=re.DOTALL)))
    for name in ("own-plain", "own-mw-net", "own"):
        own = json.loads((compared_runs / name / "all_results.json").read_text())
        accuracies = [f"{100 * own[key]:.1f} %" for key in ("eval_accuracy", "best_eval_accuracy")]
        assert " ".join([own["method"], *accuracies]) in words
    assert f"How many of 360 labels are wrong can't be told, as {results['label_report_doubt']}." in words
    report = Dataset.from_parquet(str(compared_runs / "own" / REPORT_FILE), cache_dir=str(tmp_path / "cache"))
    for row in report.select(range(pages.SHOWN)):
        given, predicted = (report.features[name].int2str(row[name]) for name in ("label", "suggested_label"))
        assert f"example {row['index']} labelled {given} looks like {predicted}" in words
    assert document.count('alt="example ') == pages.SHOWN and "figure" in document
    with Image.open(tmp_path / "page.png") as shot:
        colours = {colour for _, colour in shot.convert("RGB").getcolors(2**24)}
    assert (0, 114, 178) in colours, "a picture of the run was not shown"


@needs_browser
def test_a_page_that_fetches_something_would_be_found(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="http://example.invalid/x.png">')
    assert opened(page, tmp_path)[1] == {"http://example.invalid/x.png"}


def copy_of(run, folder):
    """A run's folder, without the diagnostics, whose pictures take a while."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("diagnostics"))
    return folder / "all_results.json", json.loads((folder / "all_results.json").read_text())


def test_without_its_data_the_page_has_the_contact_sheet(compared_runs, tmp_path):
    file, results = copy_of(compared_runs / "own", tmp_path / "run")
    file.write_text(json.dumps({**results, "dataset_name": "gone"}))
    script.main([str(tmp_path / "run")])
    text = (tmp_path / "run" / "report.html").read_text()
    assert "examples could not be read again" in text and "most suspect: index, given" in text
    assert 'alt="example ' not in text


def test_where_test_labels_may_be_wrong_the_page_says_so_beside_an_estimate(compared_runs, tmp_path):
    file, results = copy_of(compared_runs / "own", tmp_path / "run")
    unknown = {
        "test_labels_known": False, "estimated_true_accuracy": 0.876, "estimated_true_accuracy_interval": [0.8, 0.95],
        "estimated_test_noise_rate": 0.25,
    }  # fmt: skip
    file.write_text(json.dumps({**results, **unknown}))
    script.main([str(tmp_path / "run"), "--dataset_name", "digits"])
    text = (tmp_path / "run" / "report.html").read_text()
    agreement = f"{100 * results['eval_accuracy']:.1f} % agreement with test labels of which about 25 % are wrong"
    assert agreement in text and ">87.6%<" in text and "agreement with the test labels at the end" in text
    assert "share of test examples that are put into the right class. The test set" not in text


def test_names_are_no_markup(compared_runs, tmp_path):
    file, results = copy_of(compared_runs / "own", tmp_path / "run")
    file.write_text(json.dumps({**results, "dataset_name": "<script>alert(1)</script>", "method": "<img src=x>"}))
    script.main([str(tmp_path / "run"), "--dataset_name", "digits"])
    text = (tmp_path / "run" / "report.html").read_text()
    assert "<script" not in text and "<img src=x" not in text and "&lt;script&gt;" in text


def test_a_run_without_a_label_report_has_a_page_too(compared_runs, tmp_path):
    file, results = copy_of(compared_runs / "own-plain", tmp_path / "run")
    file.write_text(json.dumps({**results, "train_seconds": 5400.0}))
    script.main([str(tmp_path / "run"), "--out", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    assert '<td class="number">1.5 hours</td>' in text
    assert "How good is the classifier?" in text and "Which labels are probably wrong?" not in text


def test_texts_are_shown_and_are_no_markup(compared_runs, tmp_path):
    copy_of(compared_runs / "own", tmp_path / "run")
    details = {"text": ["a <b>bold</b> claim", "none"], "text_pair": ["and its pair", None]}
    report = label_report(np.array([0, 1]), np.eye(2)[[1, 0]], np.ones(2), ["no", "yes"], details=details)
    report.to_parquet(str(tmp_path / "run" / REPORT_FILE))
    script.main([str(tmp_path / "run"), "--dataset_name", str(tmp_path / "gone")])
    text = (tmp_path / "run" / "report.html").read_text()
    assert "of 2 labels are wrong can&#39;t be told" in text, "results of the run say why"
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    del results["label_report_doubt"]
    (tmp_path / "run" / "all_results.json").write_text(json.dumps(results))
    script.main([str(tmp_path / "run"), "--dataset_name", str(tmp_path / "gone")])
    text = (tmp_path / "run" / "report.html").read_text()
    assert "2 of 2 labels are more likely wrong than right." in text and "chance that the label is right: " in text
    assert "<q>a &lt;b&gt;bold&lt;/b&gt; claim / and its pair</q>" in text and "<q>none</q>" in text


def test_a_folder_that_is_no_run_is_refused_in_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        script.main([str(tmp_path)])
    assert refused.value.code == 2 and capsys.readouterr().err.startswith("report.py: error: ")
    assert not (tmp_path / "report.html").exists()


def test_a_drawing_in_alpha_lies_on_white_and_a_broken_image_is_left_out(tmp_path):
    drawn = Image.merge("LA", (Image.new("L", (4, 4)), Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))))
    drawn.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    data = Dataset.from_dict({"image": paths}, features=Features({"image": ImageFeature()}))
    content = picture(data, 0, side=4)
    assert (np.asarray(Image.open(io.BytesIO(content)))[..., 0].ravel() == 255 - np.arange(16)).all()
    assert picture(data, 1, side=4) is None
