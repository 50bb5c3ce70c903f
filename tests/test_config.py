from pathlib import Path

import pytest

from wsi_mil import config
from wsi_mil.config import EmbedConfig, HeatmapConfig, TileConfig, TrainConfig, from_toml
from wsi_mil.errors import ConfigError


def tile(**changes: object) -> TileConfig:
    return TileConfig(**({"slides": Path("s"), "run": Path("r")} | changes))  # type: ignore[arg-type]


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


@pytest.mark.parametrize("value", [tile(slide_mpp=0.25), HeatmapConfig(run=Path("r"), slides=("a", "b c"))])
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
