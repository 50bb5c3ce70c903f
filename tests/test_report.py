"""The page is checked as a browser reads it: parsed, not searched as text."""

import base64
import functools
import hashlib
import importlib
import io
import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from wsi_mil import manifest, report, store, tile
from wsi_mil.colours import COLOURS, SIGNED_COLOURS
from wsi_mil.config import EmbedConfig, HeatmapConfig, ReportConfig, TileConfig, TrainConfig
from wsi_mil.errors import ConfigError
from wsi_mil.geometry import PatchGeometry, grid_l0
from wsi_mil.report import figures, gather, layers, verdicts

CONFIGS = {
    "tile": lambda run: TileConfig(slides=run / "slides", run=run),
    "embed": lambda run: EmbedConfig(run=run),
    "train": lambda run: TrainConfig(run=run, labels=run / "labels.csv"),
    "heatmap": lambda run: HeatmapConfig(run=run),
}
CLASSES = ["normal", "tumor"]
NASTY = '<script>alert("x")</script> & ä b "c" #1?% 😀'


class Page(HTMLParser):
    """What a browser would make of the page: tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@functools.cache
def drawn(size, seed):
    # Blobs of all sizes: like tissue, and unlike noise, it is as busy when it is made smaller.
    rng, canvas = np.random.default_rng(seed), np.zeros((size[1], size[0], 3))
    for step in (2, 4, 8, 16, 32):
        blobs = rng.integers(0, 256, (size[1] // step, size[0] // step, 3), dtype=np.uint8)
        canvas += np.asarray(Image.fromarray(blobs).resize(size)) / 5
    buffer = io.BytesIO()
    Image.fromarray(canvas.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def jpeg(path, size=(640, 480), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(drawn(size, seed))


def add_stage(run, stage, rows=()):
    with store.stage_record(run, stage, CONFIGS[stage](run)):
        columns = ("slide_id", "status", "seconds", "patches", "reason")
        store.write_csv(run / stage / "slides.csv", columns, rows)


def add_tiled(run, ids, n=4):
    geometry = PatchGeometry.plan(width_l0=1024, height_l0=768, mpp_l0=0.5, mpp=0.5, patch_px=256)
    for slide_id in ids:
        patches = store.Patches(
            slide_id=slide_id, slide_path=run / "x.svs", reader="openslide", mpp_source="given",
            geometry=geometry, coords=grid_l0(geometry)[:n], record={},
            tissue_fraction=np.ones(n, np.float32),
        )  # fmt: skip
        store.write_patches(store.patches_path(run, slide_id), patches)
        jpeg(run / "patches" / f"{slide_id}.jpg")
    add_stage(run, "tile", [{"slide_id": each, "status": "done", "patches": n} for each in ids])


def add_model(
    run, rows, name="gated-attention", unit="patient", classes=CLASSES, task="classification", **changes
):
    """``rows``: (slide_id, patient, label, probability of each class, or value); a repeat may come after."""
    folder = store.model_folder(run, name)
    folder.mkdir(parents=True)
    values = [f"probability_{c}" for c in classes] if task in verdicts.CLASSES else list(classes)
    columns = ("repeat", "fold", "slide_id", "patient_id", "label", "predicted", *values)
    table = [
        dict(
            zip(
                columns,
                (0, i % 2, slide, patient, label, manifest.in_words(task, classes, p), *p),
                strict=True,
            )
        )
        for i, (slide, patient, label, p) in enumerate(rows)
    ]
    store.write_csv(folder / "predictions.csv", columns, table)
    score = {"value": 0.75, "low": 0.5, "high": 1.0}
    fold = {
        "fold": 0, "repeat": 0, "n_test_patients": 1, "n_test_slides": 2, "auroc": None, "epochs": [3, 4],
    }  # fmt: skip
    content = {
        "format": "wsi-mil metrics", "format_version": 2, "task": task, "names": classes, "unit": unit,
        "positive": classes[1] if len(classes) == 2 else None, "n_slides": len(rows),
        "n_patients": len({row[1] for row in rows}), "leading": "auroc",
        "scores": {"auroc": score, "balanced_accuracy": score}, "repeats": 1, "spread": {"auroc": [0.75]},
        "interval": "95 % percentile bootstrap over patients", "bootstrap": 2000, "split": "kfold",
        "folds": [fold], "left_out": [], "identity": {"encoder": "net", "mpp": 0.5, "patch_px": 256},
        "config_digest": "c", "features_digest": "f", "labels_digest": "l",
    } | changes  # fmt: skip
    store.write_text(folder / "metrics.json", json.dumps(content))
    store.write_text(folder / "config.toml", "[train]\nfolds = 2\n")


def add_heatmap(run, slide_id, name="gated-attention", model_digest=None, size=(640, 480)):
    geometry = PatchGeometry.plan(width_l0=1024, height_l0=768, mpp_l0=0.5, mpp=0.5, patch_px=256)
    record = {"model_digest": model_digest or store.model_digest(store.model_folder(run, name))}
    heatmap = store.Heatmap(
        slide_id=slide_id, geometry=geometry, coords=grid_l0(geometry)[:2],
        values={"attention": np.array([[0.5, 0.5]], np.float32)}, outputs=("tumor",),
        shown={"quantity": "attention", "output": "tumor"}, facts={}, record=record,
    )  # fmt: skip
    folder = store.heatmap_folder(run, name, slide_id)
    folder.mkdir(parents=True)
    store.write_heatmap(folder / "heatmap.zarr", heatmap)
    jpeg(folder / "overlay.jpg", size)


ROWS = [
    ("right", "1", "tumor", (0.1, 0.9)),
    ("worst", "2", "normal", (0.05, 0.95)),
    ("unsure", "3", "tumor", (0.6, 0.4)),
    ("fine", "4", "normal", (0.7, 0.3)),
]


@pytest.fixture
def run(tmp_path):
    """A run that went through all stages, with one slide that failed in each of two."""
    folder = tmp_path / "run"
    ids = [row[0] for row in ROWS]
    add_tiled(folder, [*ids, "untested"])
    for stage in ("embed", "train", "heatmap"):
        add_stage(folder, stage, [{"slide_id": each, "status": "done"} for each in ids])
    add_model(folder, ROWS)
    for each in ids:
        add_heatmap(folder, each)
    return folder


def page_of(run):
    result = report.run(ReportConfig(run=run))
    assert result.output == run / "report.html"
    return Page(result.output.read_text(encoding="utf-8"))


def headings(page_html):
    return re.findall(r"<article class=\"card[^>]*id=.*?<h3>(.*?)</h3>", page_html, re.S)


def test_slides_come_most_wrong_first_and_those_untested_last(run):
    page_of(run)
    html = (run / "report.html").read_text(encoding="utf-8")
    # 1 - probability of the label: worst 0.95, unsure 0.6, fine 0.3, right 0.1
    assert headings(html) == ["worst", "unsure", "fine", "right", "untested"]
    assert "4 slides predicted, 2 of them wrongly" in html


def test_the_leading_score_comes_first_and_all_are_in_a_table(run):
    path = store.model_folder(run, "gated-attention") / "metrics.json"
    content = json.loads(path.read_text())
    scores = {name: {"value": k / 8, "low": None, "high": None} for k, name in enumerate("abcdef")}
    store.write_text(path, json.dumps(content | {"scores": scores, "leading": "e"}))
    html = page_of(run) and (run / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'class="score"><span>(\w)</span><b>(\d\.\d+)', html) == [
        ("e", "0.500"), ("a", "0.000"), ("b", "0.125"), ("c", "0.250"),
    ]  # fmt: skip
    assert re.findall(r'<tr><td>(\w)</td><td class="n">0\.', html) == list("abcdef")


def test_scores_and_counts_are_on_the_page(run):
    text = page_of(run).text
    assert "AUROC 0.750 95 % interval 0.500 to 1.000" in text
    assert "label predicted normal predicted tumor normal 1 1 tumor 1 1" in text
    assert "tile done 5 0 0" in text
    assert "Nothing failed" in text
    assert "0 1 2 undefined 3, 4" in text, "a fold that tests one class has no AUROC"


def test_the_table_gives_the_probability_of_the_positive_class(run):
    html = (report.run(ReportConfig(run=run)).output).read_text(encoding="utf-8")
    rows = re.findall(r"<tr data-card=.*?</tr>", html)
    numbers = [re.findall(r">(\d\.\d{3})<", row) for row in rows]
    # p(label), p(tumor), 1 - p(label), in the order of the cards
    assert numbers == [
        ["0.050", "0.950", "0.950"], ["0.400", "0.400", "0.600"], ["0.700", "0.300", "0.300"],
        ["0.900", "0.900", "0.100"], [],
    ]  # fmt: skip


def test_the_page_asks_for_nothing_and_runs_its_own_script_only(run):
    page, html = page_of(run), (run / "report.html").read_text(encoding="utf-8")
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert len(page.all("img")) == 5 + 4, "five previews, four maps"
    assert all(each["src"].startswith("data:image/") for each in page.all("img"))
    assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert not re.search(r"url\(|@import|https?://", html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(each for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy["content"]
    assert policy["content"].endswith(f"script-src 'sha256-{digest}'")


def test_pictures_lead_to_files_of_the_run(run):
    links = [each["href"] for each in page_of(run).all("a") if not each["href"].startswith("#")]
    assert len(links) == 9
    assert all((run / unquote(link)).is_file() for link in links)


def test_pictures_may_be_png(run):
    """As `heatmap --format png` writes them; the page leads to them as to others."""
    before = [unquote(each["href"]) for each in page_of(run).all("a")]
    names = ("overlay", "top_patches")
    folder = store.heatmap_folder(run, "gated-attention", "right")
    (folder / "overlay.jpg").unlink()
    for name in names:
        png(folder / f"{name}.png")
    place = "heatmaps/gated-attention/right"
    links = [unquote(each["href"]) for each in page_of(run).all("a")]
    assert set(links) - set(before) == {f"{place}/{name}.png" for name in names}
    assert set(before) - set(links) == {f"{place}/overlay.jpg"}


def test_names_from_outside_stay_text(tmp_path):
    run = tmp_path / "run"
    nasty_id = NASTY.replace("/", "\N{DIVISION SLASH}")  # only names in a CSV can hold a slash
    add_tiled(run, [nasty_id])
    add_stage(run, "embed", [{"slide_id": NASTY, "status": "failed", "reason": f"bad: {NASTY}"}])
    add_model(
        run, [(nasty_id, NASTY, NASTY, (0.2, 0.8)), ("b", "2", "ok", (0.3, 0.7))], classes=[NASTY, "ok"]
    )
    add_heatmap(run, nasty_id)
    page = page_of(run)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert html.count("<script") == 1, "the page's own"
    assert f"bad: {NASTY}" in page.text
    assert nasty_id in page.text
    links = [unquote(each["href"]) for each in page.all("a") if not each["href"].startswith("#")]
    assert sorted(links) == [f"heatmaps/gated-attention/{nasty_id}/overlay.jpg", f"patches/{nasty_id}.jpg"]
    assert all((run / link).is_file() for link in links)


def test_a_run_that_was_only_tiled(tmp_path):
    add_tiled(tmp_path / "run", ["a", "b"])
    text = page_of(tmp_path / "run").text
    assert "No model has been trained in this run yet" in text
    assert text.count("has not run") == 3
    assert text.count("not predicted by a model") == 2


def test_a_folder_in_which_nothing_has_run_is_refused(tmp_path):
    for folder, reason in (
        (tmp_path, r"no stage has run there; run `wsi-mil tile` first"),
        (tmp_path / "none", r"none: no such folder; give the one that `wsi-mil tile` wrote to"),
    ):
        with pytest.raises(ConfigError, match=reason):
            report.run(ReportConfig(run=folder))
        assert not (folder / "report.html").exists()


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_stage_that_broke_off_is_a_failure_though_no_slide_failed(run, status):
    record = store.read_stage(run, "embed") | {"status": status}
    store.write_text(run / "embed" / "stage.json", json.dumps(record))
    text = page_of(run).text
    assert "Nothing failed" not in text
    assert text.count("1 failure") == 3, "in the bar, at the top, and where the reasons are"
    assert f"the whole stage embed {'ended as' if status == 'failed' else 'interrupted'}" in text


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("tile/stage.json", b"", "stage.json: cannot be read"),
        ("tile/stage.json", b'{"status": "done"}', "lacks started, seconds, config_digest"),
        ("tile/stage.json", b"[1]", "lacks status"),
        ("tile/slides.csv", "slide_id,status\n\xe4,done\n".encode("latin-1"), "slides.csv: cannot be read"),
        ("tile/slides.csv", b"name,state\na,done\n", "lacks slide_id, status"),
    ],
)
def test_a_record_that_cannot_be_read_does_not_cost_the_page(run, file, content, reason):
    (run / file).write_bytes(content)
    page = page_of(run)
    assert reason in page.text
    assert "1 failure" in page.text
    assert len(page.all("article")) == 1 + 5, "one model, and every slide as before"


@pytest.mark.parametrize("part", ["folds", "identity", "left_out", "scores"])
def test_scores_that_lack_a_part_are_refused_by_name(run, part):
    path = store.model_folder(run, "gated-attention") / "metrics.json"
    content = json.loads(path.read_text())
    store.write_text(path, json.dumps({key: value for key, value in content.items() if key != part}))
    assert f"cannot be read as a model (it lacks {part})" in page_of(run).text


def test_failures_and_who_was_left_out_are_listed_with_reasons(tmp_path):
    run = tmp_path / "run"
    add_tiled(run, ["a"])
    add_stage(run, "embed", [
        {"slide_id": "a", "status": "done", "reason": "a remark"},
        {"slide_id": "b", "status": "failed", "reason": "b.svs: damaged"},
        {"slide_id": "e", "status": "skipped", "reason": "no patches"},
        {"slide_id": "f", "status": "skipped"},
    ])  # fmt: skip
    left_out = [
        {"slide_id": "c", "status": "failed", "reason": "no features"},
        {"slide_id": "d", "status": "skipped", "reason": "no label"},
    ]
    add_stage(run, "train", [{"slide_id": "c", "status": "failed", "reason": "no features"}])
    add_model(run, ROWS, left_out=left_out)
    stages, models = gather.read_stages(run), gather.read_models(run)
    found = [(each.slide_id, each.stage, each.failed) for each in gather.problems(stages, models)]
    assert found == [
        ("b", "embed", True), ("c", "train (gated-attention)", True),
        ("a", "embed", False), ("e", "embed", False), ("d", "train (gated-attention)", False),
    ]  # fmt: skip
    text = page_of(run).text
    assert "2 failures" in text
    assert "b embed b.svs: damaged" in text
    assert "d train (gated-attention) no label" in text
    cards = re.findall(r"<article class=\"card[^>]*id=.*?</article>", (run / "report.html").read_text(), re.S)
    assert [("b.svs: damaged" in card) for card in cards] == ["<h3>b</h3>" in card for card in cards]
    assert sum("<h3>b</h3>" in card for card in cards) == 1


def test_what_cannot_be_read_is_a_remark(run):
    (run / "patches" / "worst.h5").write_bytes(b"not HDF5")
    (run / "patches" / "fine.jpg").write_bytes(b"not a JPEG")
    broken = store.model_folder(run, "broken")
    broken.mkdir()
    (broken / "metrics.json").write_text("{}")
    newer = store.model_folder(run, "newer")
    newer.mkdir()
    (newer / "metrics.json").write_text('{"format": "wsi-mil metrics", "format_version": 3}')
    result = report.run(ReportConfig(run=run))
    assert not result.failed
    remarks = {each.slide_id: each.facts["reason"] for each in result.outcomes if each.facts}
    assert "its patches cannot be read" in remarks.pop("worst")
    assert "the picture of tissue and patches cannot be read" in remarks.pop("fine")
    assert not remarks
    text = page_of(run).text
    assert "says it is None version None; wanted 'wsi-mil metrics' 2" in text
    assert "format version 3, this program knows 2; update wsi-mil" in text
    assert "AUROC 0.750" in text


def test_a_heatmap_of_an_earlier_model_is_said_to_be_one(tmp_path):
    run = tmp_path / "run"
    add_tiled(run, ["right", "worst"])
    add_model(run, ROWS)
    add_heatmap(run, "right")
    add_heatmap(run, "worst", model_digest="of another model")
    result = report.run(ReportConfig(run=run))
    assert [each.slide_id for each in result.outcomes if each.facts] == ["worst"]
    assert "drawn by an earlier model" in page_of(run).text


def test_several_models_each_have_scores_and_verdicts(run):
    add_model(run, [(*row[:3], row[3][::-1]) for row in ROWS], name="mean", unit="slide")
    page = page_of(run)
    assert page.text.count("balanced accuracy 0.750 95 % interval") == 2
    # p(label) of the two models are p and 1 - p: every mean error is a half, and ids decide
    html = (run / "report.html").read_text(encoding="utf-8")
    assert headings(html) == ["fine", "right", "unsure", "worst", "untested"]


def test_counts_are_over_patients_where_the_scores_are(tmp_path):
    rows = [
        ("a", "1", "tumor", (0.1, 0.9)), ("b", "1", "tumor", (0.8, 0.2)),  # mean 0.55
        ("c", "2", "normal", (0.6, 0.4)), ("d", "3", "normal", (0.7, 0.3)),
    ]  # fmt: skip
    for unit in ("patient", "slide"):
        add_model(tmp_path, rows, name=unit, unit=unit)
    for model in gather.read_models(tmp_path):
        counts = figures.confusion(model).counts
        assert counts == {"patient": [[2, 0], [0, 1]], "slide": [[2, 0], [1, 1]]}[model.name]


def png(path, size=(40, 30)):
    Image.new("RGB", size, "blue").save(path)


def test_figures_of_a_model_are_on_the_page(run):
    folder = store.model_folder(run, "gated-attention")
    png(folder / "roc.png")
    png(folder / "losses.png")
    page = page_of(run)
    shown = [each for each in page.all("img") if each.get("class") is None]
    assert [each["alt"] for each in shown] == [
        "ROC of gated-attention",
        "losses while training of gated-attention",
    ]
    assert (shown[0]["width"], shown[0]["height"]) == ("40", "30")
    assert "models/gated-attention/roc.png" in [each["href"] for each in page.all("a")]
    (folder / "roc.png").write_bytes((folder / "roc.png").read_bytes()[:60])
    assert "roc.png cannot be read" in page_of(run).text


def test_several_repeats_are_their_mean(tmp_path):
    folder = store.model_folder(tmp_path, "gated-attention")
    add_tiled(tmp_path, ["a", "b"])
    rows = [("a", "1", "tumor", (0.1, 0.9)), ("b", "2", "normal", (0.3, 0.7))]
    add_model(tmp_path, rows, repeats=2, spread={"auroc": [0.5, 1.0]}, null={"permutations": 9, "p": 0.1})
    with (folder / "predictions.csv").open("a") as file:
        file.write("1,2,a,1,tumor,normal,0.6,0.4\n1,3,b,2,normal,normal,0.8,0.2\n")
    verdicts = gather.read_models(tmp_path)[0].verdicts
    assert verdicts["a"].probabilities == pytest.approx({"normal": 0.35, "tumor": 0.65})
    assert (verdicts["a"].folds, verdicts["a"].predicted, verdicts["a"].wrong) == ("0, 2", "tumor", False)
    assert verdicts["b"].predicted == "normal"
    text = page_of(tmp_path).text
    assert "AUROC of the repeats alone: 0.500, 1.000" in text
    assert "With shuffled labels (9 times) p = 0.1" in text
    assert "scored in every repeat" in text


SCORE = {"value": 0.5, "low": None, "high": None}


@pytest.mark.parametrize(
    ("task", "names", "rows", "order", "words"),
    [
        (
            "multilabel", ["a", "b"],
            [("x", "1", "a;b", (0.9, 0.1)), ("y", "2", "none", (0.2, 0.3)), ("z", "3", "b", (0.1, 0.9))],
            ["x", "y", "z"], ["label a;b predicted a", "label none predicted none", "1 of them wrongly"],
        ),
        (
            "regression", ["value"],
            [("x", "1", "10", (12.0,)), ("y", "2", "20", (10.0,)), ("z", "3", "5", (5.0,))],
            ["y", "x", "z"], ["label 20 predicted 10", "0 of them wrongly"],
        ),
        (
            "survival", ["risk"],
            [("y", "1", "12 event", (0.25,)), ("x", "2", "9 censored", (-1.5,))],
            ["x", "y"], ["label 12 event risk 0.25", "label 9 censored risk -1.5", "2 slides predicted."],
        ),
        (
            "ordinal", ["low", "mid", "high"],
            [("x", "1", "low", (0.2, 0.3, 0.5)), ("y", "2", "mid", (0.1, 0.8, 0.1))],
            ["x", "y"], ["predicted low predicted mid predicted high low 0 0 1 mid 0 1 0"],
        ),
    ],
)  # fmt: skip
def test_every_task_has_a_page(tmp_path, task, names, rows, order, words):
    add_tiled(tmp_path, [row[0] for row in rows])
    add_model(
        tmp_path, rows, classes=names, task=task, positive=None, leading="main", scores={"main": SCORE},
        unit="slide",
    )  # fmt: skip
    text = page_of(tmp_path).text
    assert headings((tmp_path / "report.html").read_text(encoding="utf-8")) == order
    assert "main 0.500" in text
    for each in words:
        assert each in text


def test_predictions_of_a_model_of_another_run_are_shown(tmp_path):
    add_tiled(tmp_path, ["a", "b"])
    columns = ("slide_id", "predicted", "probability_normal", "probability_tumor", "folds", "trained_on")
    rows = {
        "a": dict(zip(columns, ("a", "tumor", "0.1", "0.9", "3", "yes"), strict=True)),
        "b": dict(zip(columns, ("b", "normal", "0.8", "0.2", "3", "no"), strict=True)),
    }
    predictions = store.Predictions(
        record={"model": "m"}, facts={"task": "classification", "names": CLASSES}, columns=columns, rows=rows,
        features={"a": "1", "b": "2"},
    )  # fmt: skip
    folder = store.predictions_folder(tmp_path, "m")
    store.write_predictions(folder, predictions)
    text = page_of(tmp_path).text
    assert "m, trained in another run 2 slides predicted, none scored" in text
    assert "predicted tumor 0.90 mean of 3 folds the model was trained on this slide" in text
    scores = {
        "format": "wsi-mil metrics", "format_version": 2, "task": "classification", "names": CLASSES,
        "scores": {"auroc": SCORE}, "leading": "auroc", "positive": "tumor", "unit": "slide", "n_slides": 2,
        "n_patients": 2, "interval": "of some kind", "bootstrap": 100,
        "left_out": [{"slide_id": "c", "reason": "no prediction"}],
    }  # fmt: skip
    store.write_predictions(folder, predictions, {"metrics.json": json.dumps(scores)})
    text = page_of(tmp_path).text
    assert "every scored slide is new to it: it is predicted by the mean of the folds" in text
    assert "c scores of (m, trained in another run) no prediction" in text
    (folder / "predict.json").write_text("{}")
    assert "cannot be read as predictions" in page_of(tmp_path).text


def test_a_model_of_an_earlier_version_says_what_to_do(run):
    path = store.model_folder(run, "gated-attention") / "metrics.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 1'))
    text = page_of(run).text
    assert "format version 1, made by an earlier version of wsi-mil" in text
    assert "Train the model again" in text


@pytest.mark.parametrize("budget", [60_000, 15_000, 100])
def test_a_picture_is_as_large_as_its_budget_allows(tmp_path, budget):
    path = tmp_path / "a.jpg"
    jpeg(path, (1400, 900))
    picture = figures.shrink(path, "noise", budget)
    data = base64.b64decode(picture.uri.partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (picture.width, picture.height)
    assert picture.width / picture.height == pytest.approx(1400 / 900, rel=0.01)
    if budget == 100:
        assert picture.width == 160, "never smaller than one can see"
    else:
        assert 0.6 * budget < len(data) <= budget


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_two_hundred_slides_stay_below_twenty_megabytes(tmp_path, monkeypatch, count):
    """The whole page from the pictures' budget: every slide has a busy picture and a map of noise."""
    part = count / 200
    module = importlib.import_module("wsi_mil.report.run")  # the package's `run` is the function
    monkeypatch.setattr(module, "_PICTURE_BYTES", int(module._PICTURE_BYTES * part))
    run, ids = tmp_path / "run", [f"slide_{i}" for i in range(count)]
    add_stage(run, "tile", [{"slide_id": each, "status": "done"} for each in ids])
    add_tiled(tmp_path / "one", ["x"])
    jpeg(tmp_path / "a.jpg", (900, 700))
    geometry = PatchGeometry.plan(width_l0=15_360, height_l0=12_288, mpp_l0=0.5, mpp=0.5, patch_px=256)
    coords = grid_l0(geometry)
    values = np.random.default_rng(0).random((3, 2, len(coords)), dtype=np.float32)
    heatmap = store.Heatmap(
        slide_id="x", geometry=geometry, coords=coords, outputs=("a", "b"), facts={}, record={},
        values=dict(zip(store.QUANTITIES, values, strict=True)),
        shown={"quantity": "attention", "output": "b"},
    )  # fmt: skip
    store.write_heatmap(tmp_path / "heatmap.zarr", heatmap)
    for folder in ("patches", "report/thumbnails"):
        (run / folder).mkdir(parents=True)
    for each in ids:
        store.patches_path(run, each).hardlink_to(store.patches_path(tmp_path / "one", "x"))
        (run / "report" / "thumbnails" / f"{each}.jpg").hardlink_to(tmp_path / "a.jpg")
        store.heatmap_folder(run, "m", each).mkdir(parents=True)
        (store.heatmap_folder(run, "m", each) / "heatmap.zarr").symlink_to(tmp_path / "heatmap.zarr")
    page = page_of(run)
    shown = [each["class"] for each in page.all("img")]
    assert shown.count("slide") == count
    assert shown.count("heat") >= 2 * count
    assert 12e6 * part < (run / "report.html").stat().st_size < 20e6 * part + 50_000  # style, script, tables


def layer_pixels(layer):
    data = base64.b64decode(layer.uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(int)


def test_a_layer_has_the_colour_of_each_value_and_nothing_where_no_patch_is():
    geometry = PatchGeometry.plan(width_l0=1100, height_l0=800, mpp_l0=0.5, mpp=0.5, patch_px=256)
    coords = grid_l0(geometry)[[0, 3, 5, 6, 11]]
    values = np.array([[0.0, 0.2, 0.4, 0.6, 1.0], [-1.0, -0.5, 0.0, 0.5, 0.25]], np.float32)
    heatmap = store.Heatmap(
        slide_id="x", geometry=geometry, coords=coords, outputs=("o",), facts={}, record={},
        values={"attention": values[:1], "evidence": values[1:]},
        shown={"quantity": "evidence", "output": "o"},
    )  # fmt: skip
    found, left_out = layers.layers(heatmap, "m", 10_000)
    assert [each.quantity for each in found] == ["evidence", "attention"]
    assert not left_out
    assert (found[0].low, found[0].high, found[1].low, found[1].high) == (-1, 1, 0, 1)
    for layer, raw, palette in ((found[0], values[1], SIGNED_COLOURS), (found[1], values[0], COLOURS)):
        pixels = layer_pixels(layer)
        assert pixels.shape == (3, 4, 4)
        assert layer.box == pytest.approx((0, 0, 4 * 256 / 1100, 3 * 256 / 800))
        shade = np.rint(62 * (raw - layer.low) / (layer.high - layer.low)) / 62
        strength = abs(2 * shade - 1) if layer.quantity == "evidence" else shade
        cells = coords[:, ::-1] // 256
        shown = pixels[cells[:, 0], cells[:, 1]]
        assert abs(shown[:, :3] - 255 * palette(shade)[:, :3]).max() < 6
        assert abs(shown[:, 3] - 255 * (1 + 2 * strength) / 3).max() < 4
        assert (pixels[..., 3] > 0).sum() == 5
    few, left_out = layers.layers(heatmap, "m", 1)
    assert [each.quantity for each in few] == ["evidence"], "the one that the overlay shows is always there"
    assert left_out == ["attention of o"]


def test_a_layer_of_overlapping_patches_has_cells_in_their_middles_and_a_large_one_gets_coarser():
    geometry = PatchGeometry.plan(
        width_l0=25_600, height_l0=25_600, mpp_l0=0.5, mpp=0.5, patch_px=256, overlap_px=128
    )
    coords = grid_l0(geometry)
    values = {"attention": np.random.default_rng(0).random((1, len(coords)), dtype=np.float32)}
    heatmap = store.Heatmap(
        slide_id="x", geometry=geometry, coords=coords, outputs=("o",), facts={}, record={}, values=values,
        shown={"quantity": "attention", "output": "o"},
    )  # fmt: skip
    ((layer,), _) = layers.layers(heatmap, "m", 8000)
    assert len(base64.b64decode(layer.uri.partition(",")[2])) <= 8000
    assert layer.box[:2] == (64 / 25_600, 64 / 25_600)
    pixels = layer_pixels(layer)
    step = layer.box[2] * 25_600 / pixels.shape[1]
    halved = round(step / 128)
    assert halved in (2, 4, 8)
    grid = values["attention"].reshape(geometry.grid_shape_rc)
    shade = (grid[:halved, :halved].mean() - layer.low) / (layer.high - layer.low)
    assert abs(pixels[0, 0, :3] - 255 * np.array(COLOURS(shade)[:3])).max() < 6


def test_the_slides_own_picture_is_read_once_and_kept(tmp_path, make_slide):
    path = make_slide("a.tiff")
    run = tmp_path / "run"
    assert not tile.run(TileConfig(slides=path, run=run, workers=1)).failed
    (picture,) = page_of(run).all("img")
    kept = run / "report" / "thumbnails" / "a.jpg"
    with Image.open(kept) as image:
        assert image.size == (1200, 900)
        assert abs(np.asarray(image)[450, 450].astype(int) - [205, 120, 170]).max() < 25, "no frame is drawn"
    path.unlink()
    assert page_of(run).all("img") == [picture]
    kept.unlink()
    text = page_of(run).text
    assert "the preview with its patches framed, because the slide cannot be read" in text
    assert not kept.exists()


def test_the_report_leaves_a_record_and_no_leftovers(run):
    page_of(run)
    assert store.read_stage(run, "report")["slides"] == 5
    page_of(run)
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []
