"""One policy from any picture file to pixels, for every command that reads pictures.

A picture is opened by its contents, never by its name, and only as one of the formats in
`formats.py`. The first frame is decoded whole before any of its properties is used. What happens to
each kind of samples:

| stored | read as |
|---|---|
| 1 bit, 8-bit grey, 8-bit RGB | as they are |
| 16-bit grey | 16 bits; in 8 bits the nearest value, round(v / 257) |
| 16-bit colour, and 16-bit grey with alpha | 8 bits, the upper byte: what Pillow gives |
| 32-bit integers without a stated range | 8 bits if all are in 0 to 255, 16 bits if all are in |
| | 0 to 65535; others are refused |
| floating point | refused: nothing says which number is white |
| palette | RGB, and alpha where an entry is transparent |
| CMYK (and YCCK) | sRGB by the picture's own profile; without one by Pillow's formula |
| CIE L*a*b*, YCbCr, HSV | RGB |
| premultiplied alpha | divided by alpha |
| alpha, a transparent value (of 16 bits too) | `alpha`, 8 bits; None where all is opaque |
| ICC profile of RGB or grey samples | `profile`; the samples stay as they are |
| ICC profile, damaged or for other samples | left out: the samples count as sRGB |
| orientation in EXIF, TIFF or XMP | turned upright; damaged EXIF turns nothing |

Two views of a picture are 8-bit RGB. `Picture.coded` has the samples that a codec codes: without
alpha and profile, which go beside them. Training, validation and evaluation look at this one.
`Picture.shown` is what a viewer shows: colours converted to sRGB by the profile (relative
colorimetric), transparent parts on white. What is stored without its profile and alpha is made
from this one.

`PictureError` says what is refused: what is no picture, or of a format that is not known or lacks
its plugin; files above `MAX_BYTES` and pictures above `MAX_PIXELS`, before memory is taken for
them; damaged and cut-off ones; and samples without a known range.
"""

from pipeline.common.pictures.errors import PictureError, Refusal
from pipeline.common.pictures.formats import (
    ENDINGS,
    find_files,
    find_pictures,
    format_of,
    is_picture,
)
from pipeline.common.pictures.limits import MAX_BYTES, MAX_PIXELS
from pipeline.common.pictures.opening import Header, opened
from pipeline.common.pictures.reading import Picture, read, read_coded, thumbnail

__all__ = [
    "ENDINGS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "Header",
    "Picture",
    "PictureError",
    "Refusal",
    "find_files",
    "find_pictures",
    "format_of",
    "is_picture",
    "opened",
    "read",
    "read_coded",
    "thumbnail",
]
