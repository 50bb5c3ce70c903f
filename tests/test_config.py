from pathlib import Path

import pytest

from wsi_mil import config
from wsi_mil.config import EmbedConfig, HeatmapConfig, TileConfig, TrainConfig, from_toml
from wsi_mil.errors import ConfigError


def tile(**changes: object) -> TileConfig:
    return TileConfig(**({"slides": Path("s"), "run": Path("r")} | changes))  # type: ignore[arg-type]


def train(**changes: object) -> TrainConfig:
    return TrainConfig(**({"run": Path("r"), "labels": Path("l")} | changes))  # type: ignore[arg-type]


def test_digest_covers_what_changes_results_and_nothing_else():
    base = config.digest(config.record(tile()))
    same = tile(slides=Path("elsewhere"), run=Path("other"), workers=7, overwrite=True, pattern="*.svs")
    assert config.digest(config.record(same)) == base
    for change in ({"mpp": 0.25}, {"overlap_px": 8}, {"slide_mpp": 0.3}, {"min_area_um2": 1.0}):
        assert config.digest(config.record(tile(**change))) != base, change


def test_the_first_difference_is_named():
    old, new = (config.record(tile(mpp=mpp)) for mpp in (0.5, 0.25))
    assert config.first_difference(old, new) == "mpp was 0.5 and is now 0.25"
    assert config.first_difference(old, dict(reversed(old.items()))) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mpp": 0}, "--mpp 0: microns per pixel must lie between 0.05 and 5"),
        ({"mpp": 20}, "--mpp 20"),
        ({"slide_mpp": 264.58}, "--slide-mpp 264.58"),
        ({"overlap_px": 256}, "--overlap-px 256: must be at least 0 and below --patch-px"),
        ({"min_tissue": 50}, "--min-tissue 50: a fraction"),
        ({"patch_px": 2}, "--patch-px 2"),
        ({"workers": -1}, "--workers -1"),
    ],
)
def test_tile_complains_in_the_flags_words(change, words):
    with pytest.raises(ConfigError, match=words):
        tile(**change)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EmbedConfig(run=Path("r"), batch_size=0), "--batch-size 0"),
        (lambda: EmbedConfig(run=Path("r"), encoder=" "), "--encoder: the name is empty"),
        (lambda: TrainConfig(run=Path("r"), labels=Path("l"), folds=1), "--folds 1"),
        (lambda: TrainConfig(run=Path("r"), labels=Path("l"), name="a/b"), "--name 'a/b'"),
        (lambda: HeatmapConfig(run=Path("r"), opacity=0), "--opacity 0"),
    ],
)
def test_the_other_stages_too(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize(
    "value",
    [
        tile(slide_mpp=0.25),
        HeatmapConfig(run=Path("r"), only=("a", "b c")),
        train(bag_size=1024),
        train(bag_size="full", classes=["0", "1"], splits=Path("m/splits.csv"), dropout=0.5),
    ],
)
def test_toml_round_trip(tmp_path, value):
    path = tmp_path / "a.toml"
    path.write_text(config.to_toml(value))
    assert config.from_toml(type(value), path) == value


def test_toml_values_are_defaults_and_overrides_win(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('[tile]\nslides = "s"\nrun = "r"\nmpp = 1\n[embed]\nrun = "r"\n')
    assert config.from_toml(TileConfig, path, patch_px=128) == tile(mpp=1.0, patch_px=128)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[tile]\nslides="s"\nrun="r"\nmpps=1', r"unknown key 'mpps' in \[tile\]; known: slides, run"),
        ('[tiles]\nslides="s"', "unknown table or key 'tiles'"),
        ('[tile]\nslides="s"\nrun="r"\nmpp="fine"', r"\[tile\] mpp = 'fine': wanted float"),
        ('[tile]\nslides="s"\nrun="r"\npatch_px=true', "wanted int"),
        ('[tile]\nslides="s"', "missing 1 required keyword-only argument: 'run'"),
        ("[tile", "not TOML"),
    ],
)
def test_toml_that_is_wrong_is_refused(tmp_path, text, words):
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        config.from_toml(TileConfig, path)


def test_a_missing_toml_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        config.from_toml(TileConfig, tmp_path / "none.toml")


def test_overrides_of_a_file_may_be_paths(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text("[tile]\nmpp = 1.0\n")
    config = from_toml(TileConfig, path, slides=tmp_path, run=tmp_path / "run")
    assert (config.slides, config.run, config.mpp) == (tmp_path, tmp_path / "run", 1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"model": "transformer"},
            "--model transformer: unknown; wanted gated-attention, .*, or torchmil:NAME",
        ),
        ({"model": "torchmil:"}, "--model torchmil:: unknown"),
        ({"task": "survivall"}, "--task survivall: unknown; wanted classification, multilabel"),
        ({"split": 5}, "--split 5: unknown; wanted auto, kfold"),
        ({"folds": 1}, "--folds 1: at least 2 are needed to test"),
        ({"dropout": 1}, "--dropout 1: must be at least 0 and below 1"),
        ({"patch_dropout": -0.1}, "--patch-dropout -0.1"),
        ({"label_smoothing": float("nan")}, "--label-smoothing nan"),
        ({"attention_dim": 0}, "--attention-dim 0: must be at least 1"),
        ({"members": 0}, "--members 0"),
        ({"epochs": 0}, "--epochs 0"),
        ({"patience": 0}, "--patience 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"repeats": 0}, "--repeats 0"),
        ({"time_bins": 0}, "--time-bins 0"),
        ({"val_fraction": -0.1}, "--val-fraction -0.1: at least 0, at most 0.5"),
        ({"val_fraction": 0, "grid": Path("g.toml")}, "--val-fraction 0: --grid chooses"),
        ({"val_fraction": 0.6}, "--val-fraction 0.6"),
        ({"bag_size": 0}, "--bag-size 0: at least 1, or full"),
        ({"bag_size": "half"}, "--bag-size half: unknown; wanted int, full"),
        ({"bag_size": True}, "--bag-size True"),
        ({"learning_rate": 0}, "--learning-rate 0: must be positive"),
        ({"attention_rate": float("inf")}, "--attention-rate inf"),
        ({"weight_decay": -1}, "--weight-decay -1: must not be negative"),
        ({"feature_noise": -1}, "--feature-noise -1"),
        ({"hidden_dim": -1}, "--hidden-dim -1"),
        ({"permutations": -1}, "--permutations -1"),
        ({"bootstrap": 99}, "--bootstrap 99: at least 100"),
        ({"seed": -1}, "--seed -1: must not be negative"),
        ({"name": ".."}, "--name '..'"),
        ({"classes": ("a", "")}, "--classes a, : wanted words, none empty"),
        ({"classes": (0, 1)}, "--classes 0, 1: wanted words"),
        ({"classes": ("a ", "b")}, "none with a blank before or after"),
        ({"classes": ("a", "b", "a")}, "--classes a, b, a: a class stands there twice"),
        ({"classes": ("a",)}, "--classes a: one class only"),
        ({"task": "ordinal"}, "--task ordinal: needs --classes with the grades from lowest to highest"),
        ({"task": "ordinal", "classes": ("a",)}, "--task ordinal: needs --classes"),
        ({"task": "regression", "classes": ("a", "b")}, "--classes a, b: --task regression has no classes"),
        ({"task": "survival", "classes": ("a", "b")}, "--classes a, b: --task survival has no classes"),
        (
            {"task": "multilabel", "classes": ("a", "none")},
            "--classes a, none: .*'none' says that there is none",
        ),
        ({"task": "multilabel", "classes": ("a;b",)}, "--classes a;b: ';' joins labels"),
        ({"task": "regression", "positive": "a"}, "--positive a: only --task classification"),
        ({"positive": "c", "classes": ("a", "b")}, "--positive c: not one of --classes a, b"),
        (
            {"survival_loss": "discrete"},
            "--survival-loss discrete: only with --task survival, not classification",
        ),
        (
            {"task": "survival", "survival_loss": "discrete", "time_bins": 1},
            "--time-bins 1: at least 2 intervals",
        ),
        ({"branches": "class", "model": "max"}, "--branches class: --model max has no attention to branch"),
        (
            {"patient_bags": "merge", "label_level": "slide"},
            "--patient-bags merge: .*not with --label-level slide",
        ),
        ({"split": "column", "repeats": 2}, "--repeats 2: --split column has one set of folds"),
        ({"split": "leave-one-out", "repeats": 2}, "--repeats 2: --split leave-one-out has one set"),
        ({"splits": Path("s.csv"), "split": "kfold"}, "--splits s.csv: the file says who is in which fold"),
        ({"splits": Path("s.csv"), "repeats": 2}, "--splits s.csv"),
    ],
)
def test_train_complains_in_the_flags_words(change, words):
    with pytest.raises(ConfigError, match=words):
        train(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "torchmil:TransMIL"},
        {"branches": "class"},
        {"task": "multilabel", "classes": ("a",)},
        {"task": "ordinal", "classes": ("low", "high")},
        {"task": "survival", "survival_loss": "discrete", "time_bins": 2},
        {"split": "kfold", "repeats": 5},
        {"splits": Path("s.csv"), "group_by": "site"},
        {"positive": "a", "classes": ("a", "b")},
        {"hidden_dim": 0, "bag_size": 1, "batch_size": None},
    ],
)
def test_train_takes_what_belongs_together(change):
    assert all(getattr(train(**change), name) == value for name, value in change.items())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('bag_size = "half"', r"\[train\] bag_size = 'half': wanted int, 'full'"),
        ("bag_size = 10.5", r"bag_size = 10.5: wanted int, 'full'"),
        ("bag_size = true", "bag_size = True: wanted int, 'full'"),
        ('task = "survivall"', r"task = 'survivall': wanted 'classification', 'multilabel'"),
        ("group_by = 3", "group_by = 3: wanted str"),
        ('batch_size = "4"', "batch_size = '4': wanted int"),
    ],
)
def test_toml_of_train_that_is_wrong_is_refused(tmp_path, text, words):
    path = tmp_path / "a.toml"
    path.write_text(f'[train]\nrun = "r"\nlabels = "l"\n{text}\n')
    with pytest.raises(ConfigError, match=words):
        config.from_toml(TrainConfig, path)


@pytest.mark.parametrize(("text", "value"), [("1024", 1024), ('"full"', "full")])
def test_a_size_of_bags_is_a_number_or_a_word(tmp_path, text, value, wsi, capsys):
    path = tmp_path / "a.toml"
    path.write_text(f'[train]\nrun = "r"\nlabels = "l"\nbag_size = {text}\nclasses = [0, 1]\n')
    assert config.from_toml(TrainConfig, path) == train(bag_size=value, classes=("0", "1"))
    base = ("train", "--run", "r", "--labels", "l", "--print-config")
    for arguments in ((*base, "--bag-size", value), ("train", "--config", path, "--print-config")):
        code, out, _ = wsi(*arguments)
        assert code == 0
        assert f"bag_size = {text} " in out
    assert wsi(*base, "--bag-size", "half")[0] == 2


CLUSTER_STAGES = ("tile", "embed", "train", "heatmap")
NEEDED = {"tile": {"slides": Path("s")}, "train": {"labels": Path("l")}}


def stage_config(name: str, **changes: object):
    return config.STAGE_CONFIGS[name](run=Path("r"), **(NEEDED.get(name, {}) | changes))


@pytest.mark.parametrize("stage", CLUSTER_STAGES)
def test_where_the_work_is_done_changes_no_digest(stage):
    base = config.digest(config.record(stage_config(stage)))
    for change in (
        {"scheduler": "tcp://a:1"}, {"scheduler_file": Path("f")}, {"dask": "local"}, {"worker_wait": 5},
    ):  # fmt: skip
        changed = stage_config(stage, **change)
        assert config.digest(config.record(changed)) == base
        assert changed.on_cluster == ("worker_wait" not in change)


@pytest.mark.parametrize("stage", CLUSTER_STAGES)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scheduler": "tcp://a:1", "dask": "local"}, "--scheduler and --dask local: name one cluster"),
        ({"scheduler": "tcp://a:1", "dask": "none"}, "--scheduler and --dask none: name one cluster"),
        ({"scheduler": "node1"}, "--scheduler node1: wanted an address such as tcp://HOST:8786"),
        ({"dask": "cloud"}, "--dask cloud: unknown"),
        ({"worker_wait": 0}, "--worker-wait 0"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(stage, change, words):
    with pytest.raises(ConfigError, match=words):
        stage_config(stage, **change)


def test_the_cluster_is_declared_once_for_all_stages(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(
        '[cluster]\nscheduler_file = "s.json"\nworker_wait = 9\n[heatmap]\nrun = "r"\ndask = "none"\n'
        '[embed]\nrun = "r"\n[report]\nrun = "r"\n'
    )
    embed = from_toml(EmbedConfig, path)
    assert (embed.scheduler_file, embed.worker_wait) == (Path("s.json"), 9)
    heatmap = from_toml(HeatmapConfig, path)
    assert (heatmap.scheduler_file, heatmap.worker_wait) == (None, 9), "its own place replaces the file's"
    assert config.toml_values(path, "report") == {"run": "r"}, "a report needs no cluster"
    path.write_text('[cluster]\nschedular = "tcp://a:1"\n')
    with pytest.raises(ConfigError, match=r"unknown key 'schedular' in .cluster.; known: scheduler, "):
        config.toml_values(path, "tile")
