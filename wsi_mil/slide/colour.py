"""Bring a slide's colours to sRGB through its own ICC profile (Pillow's ImageCms, which is LittleCMS).

Comes in: the profile that a slide's file carries. Goes out: a function of pixels, and what the profile calls
itself. It converts pixel by pixel, so that whoever converts a whole region or a single block gets the same.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from wsi_mil.errors import SlideError

_INTENT_PERCEPTUAL = ImageCms.Intent.PERCEPTUAL


def name_of(profile: ImageCms.ImageCmsProfile | None) -> str:
    """Return what a profile calls itself; "" where there is none."""
    if profile is None:
        return ""
    try:
        return str(ImageCms.getProfileDescription(profile)).strip() or "unnamed"
    except ImageCms.PyCMSError:
        return "unnamed"


class ToSrgb:
    """Pixels of a slide to sRGB. Safe to use from several threads."""

    def __init__(self, profile: ImageCms.ImageCmsProfile | None, where: str | Path) -> None:
        """Prepare the conversion, with the rendering intent that the profile asks for.

        Raises:
            SlideError: the slide has no profile, or one that is damaged or not of RGB pixels.
        """
        if profile is None:
            raise SlideError(
                f"{where}: has no ICC profile, so --icc srgb does not know what its colours are. "
                "Leave --icc out, or this slide."
            )
        try:
            intent = ImageCms.Intent(ImageCms.getDefaultIntent(profile))
            supported = ImageCms.isIntentSupported(profile, intent, ImageCms.Direction.INPUT) == 1
            self._transform = ImageCms.buildTransform(
                profile,
                ImageCms.createProfile("sRGB"),
                "RGB",
                "RGB",
                renderingIntent=intent if supported else _INTENT_PERCEPTUAL,
                flags=ImageCms.Flags.NOCACHE,  # what a thread keeps of its last pixel is nobody else's
            )
        except (ImageCms.PyCMSError, ValueError, TypeError, OSError) as error:
            raise SlideError(
                f"{where}: its ICC profile cannot be used ({error}). Leave --icc out, or this slide."
            ) from error

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (height, width, 3) pixels in sRGB."""
        converted = ImageCms.applyTransform(Image.fromarray(pixels), self._transform)
        return np.asarray(converted)
