"""Tables that people write, slides.csv and labels.csv: checked, and all that is wrong said at once."""

from wsi_mil.manifest.slides import Found, SlideEntry, find_slides, read_manifest

__all__ = ["Found", "SlideEntry", "find_slides", "read_manifest"]
