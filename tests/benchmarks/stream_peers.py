"""Other loaders that do the same work: decode with Pillow, cut a random crop, batch as uint8.

Each contender is `contender(folder, crop, batch, workers) -> iterable of uint8 (B, 3, S, S)`, over
one epoch of the pictures in `folder`, which `prepare` has laid out for all of them.
"""

from __future__ import annotations

import io
import multiprocessing
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shards import Stream

Contender = Callable[[Path, int, int, int], Iterable[Tensor]]


def crop_by_pillow(data: bytes, crop: int) -> Tensor:
    """Decode all, cut a random crop, flip half: uint8 (3, S, S)."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    left = random.randint(0, picture.width - crop)
    top = random.randint(0, picture.height - crop)
    pixels = np.asarray(picture.crop((left, top, left + crop, top + crop)))
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def prepare(folder: Path) -> dict[str, Contender]:
    """Lay out the pictures of the shards in `folder` for each loader that is installed."""
    files = folder / "files"
    files.mkdir(exist_ok=True)
    for tar in sorted(folder.glob("train-*.tar")):
        with tarfile.open(tar) as members:
            for member in members:
                target = files / member.name.replace("/", "_")
                if not target.exists() and not member.name.endswith((".json", ".cls", ".txt")):
                    target.write_bytes(members.extractfile(member).read())
    found: dict[str, Contender] = {
        "this project": _ours,
        "webdataset + Pillow": _webdataset,
        "torch DataLoader over a folder": _folder,
    }
    for name, make in (("litdata + Pillow", _litdata), ("mosaicml-streaming + Pillow", _mosaic)):
        try:
            found[name] = make(folder, sorted(files.iterdir()))
        except ImportError as error:
            print(f"{name}: not installed ({error})")
    multiprocessing.set_start_method("fork", force=True)  # litdata leaves it at spawn
    return found


def _ours(folder: Path, crop: int, batch: int, workers: int) -> Iterable[Tensor]:
    opened = Stream(folder, batch_size=batch, crop=crop, workers=workers, epochs=1)
    return (one.images for one in opened)


def _webdataset(folder: Path, crop: int, batch: int, workers: int) -> Iterable[Tensor]:
    import webdataset as wds

    tars = sorted(str(path) for path in folder.glob("train-*.tar"))
    data = (
        wds.WebDataset(tars, shardshuffle=len(tars), empty_check=False)
        .shuffle(1000)
        .rename(image="jpg;jpeg;JPEG;png")
        .map(lambda sample: crop_by_pillow(sample["image"], crop))
        .batched(batch, collation_fn=torch.stack, partial=False)
    )
    return DataLoader(data, batch_size=None, num_workers=workers)


class _Files(Dataset[Tensor]):
    def __init__(self, paths: list[Path], crop: int) -> None:
        self.paths, self.crop = paths, crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return crop_by_pillow(self.paths[index].read_bytes(), self.crop)


def _folder(folder: Path, crop: int, batch: int, workers: int) -> Iterable[Tensor]:
    data = _Files(sorted((folder / "files").iterdir()), crop)
    return DataLoader(data, batch, shuffle=True, num_workers=workers, drop_last=True)


def _bytes_of(path: str) -> dict[str, bytes]:
    return {"image": Path(path).read_bytes()}


def _litdata(folder: Path, files: list[Path]) -> Contender:
    import litdata

    made = folder / "litdata"
    if not made.exists():
        paths = [str(path) for path in files]
        litdata.optimize(_bytes_of, paths, str(made), chunk_bytes="64MB", num_workers=1)

    class Crops(litdata.StreamingDataset):
        crop = 0

        def __getitem__(self, index: int) -> Tensor:
            return crop_by_pillow(super().__getitem__(index)["image"], self.crop)

    def contender(folder: Path, crop: int, batch: int, workers: int) -> Iterable[Tensor]:
        data = Crops(str(made), shuffle=True, drop_last=True)
        data.crop = crop
        return litdata.StreamingDataLoader(
            data, batch_size=batch, num_workers=workers, drop_last=True
        )

    return contender


def _mosaic(folder: Path, files: list[Path]) -> Contender:
    import streaming

    made = folder / "mosaic"
    if not made.exists():
        with streaming.MDSWriter(out=str(made), columns={"image": "bytes"}) as out:
            for path in files:
                out.write({"image": path.read_bytes()})

    class Crops(streaming.StreamingDataset):
        crop = 0

        def __getitem__(self, index: int) -> Tensor:
            return crop_by_pillow(super().__getitem__(index)["image"], self.crop)

    def contender(folder: Path, crop: int, batch: int, workers: int) -> Iterable[Tensor]:
        streaming.base.util.clean_stale_shared_memory()
        data = Crops(local=str(made), shuffle=True, batch_size=batch)
        data.crop = crop
        return DataLoader(data, batch, num_workers=workers, drop_last=True)

    return contender
