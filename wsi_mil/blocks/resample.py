"""From pixels of a level to pixels at the target mpp.

Whole-number ratios are averages of pixels. A JPEG decoder's own reduction is not used: it drops the high
frequencies of each 8 x 8 square, which differs from the average by many grey levels at edges. Other ratios
are bicubic, widened against aliasing, by torch: the same filter as Pillow's, several times as fast.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def reduce_area(pixels: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Average ``pixels`` (height * f, width * g, 3) down into ``out`` (height, width, 3); f, g whole.

    Within 1 grey level of the exact average: rounding happens twice at most.
    """
    height, width = out.shape[:2]
    if (
        pixels.shape[0] % (2 * height) == 0
        and pixels.shape[1] % (2 * width) == 0
        and pixels.shape[0] > 2 * height
    ):
        # Halving is fast (SIMD); OpenCV's other ratios are not.
        pixels = cv2.resize(  # type: ignore[assignment]
            pixels, (pixels.shape[1] // 2, pixels.shape[0] // 2), interpolation=cv2.INTER_AREA
        )
    cv2.resize(pixels, (width, height), dst=out, interpolation=cv2.INTER_AREA)


def resample(
    pixels: NDArray[np.uint8],
    out: NDArray[np.uint8],
    start_xy: tuple[float, float],
    ratio_xy: tuple[float, float],
) -> None:
    """Resample ``pixels`` into ``out`` (height, width, 3), from (x, y) ``start_xy`` on, as ``Slide.read``.

    ``ratio_xy``: pixels per output pixel.
    """
    height, width = out.shape[:2]
    if not any(start_xy):
        import torch  # a second that only this filter needs

        # The operator below ``interpolate``, which takes a size or a scale: here the size is whole and the
        # scale exact, though the last output pixel may end within a pixel.
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        scale = 1 / ratio_xy[1], 1 / ratio_xy[0]
        resized = torch.ops.aten._upsample_bicubic2d_aa(image, [height, width], False, *scale)
        out[...] = resized[0].permute(1, 2, 0).numpy()
        return
    # torch cannot start between two pixels. Only levels below level 0 can ask for that.
    (x, y), (across, down) = start_xy, ratio_xy
    box = x, y, min(x + width * across, pixels.shape[1]), min(y + height * down, pixels.shape[0])
    out[...] = np.asarray(
        Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, box, reducing_gap=3)
    )
