"""What a process needs before its first slide: the encoder, on its device, and how slides are read for it.

Comes in: a config. Goes out: an ``Engine`` in the precision that suits the device; and where the processes of
a run meet: its claims, and the features that are there.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from wsi_mil import parallel, store
from wsi_mil.config import EmbedConfig
from wsi_mil.device import pick_device
from wsi_mil.embed.engine import Engine
from wsi_mil.embed.precision import Precision, choose
from wsi_mil.encoders import Encoder, load_encoder
from wsi_mil.parallel import Outcome
from wsi_mil.readers import Job, Readers, ReadSettings
from wsi_mil.slide import bytes_on_disk

_BATCH, _BATCH_GPU = 32, 256  # patches; on two CPU cores 8 to 32 are equally fast
_SLOT = 64  # patches that a reader hands over at a time, at most
_SLOTS = 2  # slots that each reader of a GPU has: one that it fills, and one that is waited for
_CPU_THREADS = 4  # of a reader for a CPU: more than so many wait for each other


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


def readers_for(config: EmbedConfig, engine: Engine, jobs: Sequence[Job], patch_px: int) -> Readers:
    """Return how slides are read for an engine, by how many readers and in how much memory.

    A CPU that computes reads in between: few readers of several threads, which pause while it computes. A GPU
    has a reader for each core that is its share, of a thread each; of few slides, some threads each.
    """
    cpu = engine.device.type == "cpu"
    cores = max(1, parallel.cpu_count() // max(len(config.devices), 1))
    count = config.readers or (-(-cores // _CPU_THREADS) if cpu else max(1, cores - 1))
    count = max(1, min(count, len(jobs)))
    threads = config.workers or max(1, cores // count)
    slot = min(engine.batch_size, _SLOT)
    batches = -(-engine.batch_size // slot) * (engine.depth + (0 if cpu else 2))
    return Readers(
        count=count,
        slots=batches + (1 if cpu and count == 1 else _SLOTS * count),
        slot_patches=slot,
        patch_px=patch_px,
        settings=ReadSettings(threads, 2 if threads > 1 else 1, config.memory_mib, config.max_broken),
        limits=lambda job: parallel.limits_of(
            config.slide_timeout,
            config.slide_memory_mib,
            count * max(len(config.devices), 1),
            size=bytes_on_disk(job.patches.slide_path),
            patches=job.count,
        ),
    )


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
