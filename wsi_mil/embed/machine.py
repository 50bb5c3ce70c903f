"""What a process needs before its first slide: the encoder, on its device, and how slides are read for it.

Comes in: a config. Goes out: an ``Engine`` in the precision that suits the device; and where the processes of
a run meet: its claims, and the features that are there.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from wsi_mil import store
from wsi_mil.config import EmbedConfig
from wsi_mil.device import pick_device
from wsi_mil.embed.engine import Engine
from wsi_mil.embed.feed import ReadSettings
from wsi_mil.embed.precision import Precision, choose
from wsi_mil.embed.work import readers
from wsi_mil.encoders import Encoder, load_encoder
from wsi_mil.parallel import Outcome

_BATCH, _BATCH_GPU = 32, 256  # patches; on two CPU cores 8 to 32 are equally fast
_READ = 64  # patches that a slide's reader hands over at a time, at most


def load(config: EmbedConfig) -> Encoder:
    """Return the encoder that the settings name."""
    return load_encoder(
        config.encoder,
        config.weights,
        weights_dir=config.weights_dir,
        offline=config.offline,
        stain=config.stain,
    )


def set_up(config: EmbedConfig, encoder: Encoder, say: Callable[[str], None]) -> tuple[Engine, Precision]:
    """Return the encoder at work on its device, and in which precision; ``say`` is told what to tell people.

    Raises:
        ConfigError: the device is not to be had, or the encoder cannot be compiled.
    """
    device = pick_device(config.device)
    precision = choose(config.precision, encoder, device)
    engine = Engine(
        encoder,
        device,
        precision.name,
        batch_size=config.batch_size or (_BATCH_GPU if device.type == "cuda" else _BATCH),
        compiled=config.compile,
        fp32_layers=precision.fp32_layers,
        say=say,
    )
    return engine, precision


def settings(config: EmbedConfig, engine: Engine) -> ReadSettings:
    """Return how slides are read for an engine: their readers share the memory.

    Small pieces leave it to blocks; the feed makes batches of them.
    """
    pieces = min(engine.batch_size, _READ)
    memory_mib = config.memory_mib // max(readers(engine.device), 1)
    return ReadSettings(pieces, config.workers, memory_mib, config.max_broken)


def there(target: store.FeatureStore, slide_id: str, reason: str = "") -> Outcome:
    """Return the outcome of a slide whose features are there, with what they say of themselves."""
    summary = target.summary(slide_id)
    facts = {
        "patches": summary.patches,
        "left_out": summary.left_out,
        "checksum": summary.checksums.get("features", ""),
    }
    return Outcome(slide_id=slide_id, status="skipped", reason=reason, facts=facts)


def elsewhere(target: store.FeatureStore, slide_id: str, reason: str) -> Outcome:
    """Return the outcome of a slide that another process has done meanwhile, which tells of it best."""
    found = there(target, slide_id, reason)
    return replace(found, facts={**found.facts, "elsewhere": True})


def claims_folder(config: EmbedConfig, encoder: str) -> Path:
    """Return where the claims on a run's slides lie."""
    return config.run / "embed" / "claims" / store.features_folder(config.run, encoder).name
