"""Slides read in processes of their own, whose patches come to this one in memory that both see.

Comes in: jobs, a slide each. Goes out: batches of patches that cross from slide to slide. A slide that hangs
or crashes a reader, or fills its memory, fails alone.

``job`` is a slide on its way; ``ring`` the memory; ``serve`` runs in a reader; ``crew`` are the readers as
this process sees them, and ``feed`` makes batches of what they read. Nothing here imports torch: a reader is
started in half a second.
"""

from wsi_mil.readers.crew import Readers
from wsi_mil.readers.feed import Batch, Feed, Source, Times
from wsi_mil.readers.job import Job, Part, ReadSettings, check_inside, read_job, read_open_slide

__all__ = [
    "Batch",
    "Feed",
    "Job",
    "Part",
    "ReadSettings",
    "Readers",
    "Source",
    "Times",
    "check_inside",
    "read_job",
    "read_open_slide",
]
