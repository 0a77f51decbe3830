"""`cca-thumbnail IN OUT SIZE`: a PNG of a `.cca` file, as thumbnailers of desktops are called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pipeline.common.atomic import writing
from pipeline.pillow import register_cca_opener

USAGE = "write cca-thumbnail IN.cca OUT.png SIZE, where SIZE is the most pixels of a side"
LARGEST = 4096  # pixels of a side


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the thumbnail; return 0, or 2 with a sentence on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if len(words) != 3 or not words[2].isdecimal() or not 0 < int(words[2]) <= LARGEST:
        return _refused(USAGE)
    if not Path(words[1]).parent.is_dir():
        return _refused(f"there is no folder {Path(words[1]).parent}")
    register_cca_opener()
    try:
        with Image.open(words[0], formats=["CCA"]) as picture:
            picture.thumbnail((int(words[2]), int(words[2])))
            with writing(Path(words[1])) as file:
                picture.save(file, "PNG")
    except UnidentifiedImageError:
        return _refused(f"{words[0]} is no .cca file")
    except OSError as error:
        return _refused(f"{words[0]}: {error}")
    return 0


def _refused(sentence: str) -> int:
    sys.stderr.write(f"cca-thumbnail: {sentence}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
