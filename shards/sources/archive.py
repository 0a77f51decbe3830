"""The pictures of a tar, of the tars inside it, and of WebDataset shards, read in place."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from shards.errors import ShardsError
from shards.sources.base import (
    ClassFolders,
    Entry,
    Listed,
    Part,
    Rows,
    Sample,
    UnreadableError,
    clean_text,
    encode_path,
    stem_and_ending,
)
from shards.sources.captions import read_descriptions
from shards.sources.files import (
    Archives,
    PartReader,
    SourceFile,
    add_files,
    add_samples,
    read_parts,
)
from shards.sources.gathering import Gathering, add_linked
from shards.sources.places import Place, ReadAhead, Window, is_remote, open_place
from shards.sources.tarwalk import DamagedTarError, Member, plain, target, walk


@dataclass(frozen=True)
class TarSource:
    """The pictures of a tar, and of the tars inside it.

    A tar inside is a class folder, as in ImageNet's training set. `samples` reads the members as
    WebDataset does, by the first dot of their names. `place` is where the bytes are, if not `path`.
    """

    path: str
    samples: bool = False
    place: str = ""

    @property
    def name(self) -> str:
        """The archive's file name."""
        return clean_text(self.path.rpartition("/")[2])

    @property
    def origin(self) -> str:
        """The archive's path or URL, as the user named it."""
        return self.path

    def collect(self, rows: Rows) -> Listed:
        """Add the pictures, member by member; raises ShardsError if the archive is cut off."""
        classes, left = ClassFolders(bare_name(self.name)), []
        place = place_for_listing(self.place or self.path)
        try:
            for members in self._members(Window(place), "", place.mtime, rows):
                if self.samples:
                    left += add_samples(rows, members)
                else:
                    left += add_files(rows, members, classes)
        finally:
            place.close()
        return listed(self.reader(), left, None if self.samples else classes)

    def reader(self) -> TarReader:
        """Open the archive for reading."""
        return TarReader(self.place or self.path, self.path)

    def _members(
        self, tar: Window, prefix: str, mtime: int, rows: Rows
    ) -> Iterator[list[SourceFile]]:
        """Yield the files of `tar`, and of each tar inside, those of a stem together."""
        links: dict[str, str] = {}
        with contextlib.closing(Gathering(rows.scratch, rows.tell)) as files:
            try:
                for member in walk(tar):
                    path = prefix + plain(member.name)
                    if not member.is_file:
                        if member.is_link:
                            links[path] = prefix + target(member)
                        elif not member.is_folder:  # a pipe or a device: named, but no file
                            files.add(SourceFile(path, Part(encode_path(path), 0, -1), mtime))
                        continue
                    if is_tar(path) and not member.sparse:
                        inner = tar.window(member.offset_data, member.size)
                        yield from self._members(inner, path[:-4] + "/", mtime, rows)
                    else:
                        files.add(SourceFile(path, _tar_part(path, member, tar.start), mtime))
            except DamagedTarError as error:
                inside = f" (in {prefix.rstrip('/')}.tar)" if prefix else ""
                raise ShardsError(
                    f"{self.path}{inside} is no tar, or is cut off or damaged ({error}): "
                    "fetch it again"
                ) from error
            add_linked(files, links, mtime)
            yield from files.groups()


class TarReader:
    """Reads members at their places; threads may share it."""

    def __init__(self, place: str, name: str) -> None:
        self._place, self._name = open_place(place), name

    def read(self, entry: Entry) -> Sample:
        """Return the bytes of the picture and its siblings."""
        return read_parts(self, entry)

    def part(self, part: Part) -> bytes:
        """Return the bytes of one member; raises UnreadableError if they cannot be had."""
        if part.offset < 0:
            return self._sparse(-1 - part.offset)
        return exactly(self._place, part.offset, part.size, self._name)

    def _sparse(self, header: int) -> bytes:
        """Return the bytes of the sparse member whose header is at `header`, holes as zeros."""
        window = Window(self._place, header)
        try:
            with tarfile.open(fileobj=window, mode="r:") as tar:
                member = tar.next()
                file = tar.extractfile(member) if member is not None else None
                return file.read() if file is not None else b""
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UnreadableError(f"the sparse member is damaged: {error}") from None

    def close(self) -> None:
        """Close the archive."""
        self._place.close()


def _tar_part(path: str, member: Member, start: int) -> Part:
    """Return where the bytes of `member` are, of a tar at `start` of its file.

    Those of a sparse member are scattered: an offset of -1 - n stands for its header at n.
    """
    offset = -1 - (start + member.offset) if member.sparse else start + member.offset_data
    return Part(encode_path(path), offset, member.size)


def listed(reader: PartReader, left: list[SourceFile], classes: ClassFolders | None) -> Listed:
    """Return what is known of an archive once its pictures are listed; closes `reader`.

    Args:
        reader: reads the descriptions.
        left: the files that are no pictures and lie beside none.
        classes: what was found out about class folders; None: nobody looked.
    """
    try:
        described = read_descriptions(left, lambda file: reader.part(file.part))
    finally:
        reader.close()
    archives = Archives()
    archives.take(described.left)
    plain_words = not (described.captions or described.columns)
    return Listed(
        len(described.left),
        bool(classes),
        captions=described.captions,
        columns=described.columns,
        notes=described.notes + archives.notes(),
        named=described.named,
        one_class=classes is not None and classes.one and plain_words,
    )


def place_for_listing(name: str) -> Place:
    """Open an archive for a look at its headers, one after the other, by one thread."""
    place = open_place(name)
    return ReadAhead(place) if is_remote(name) else place


def exactly(place: Place, offset: int, size: int, name: str) -> bytes:
    """Return `size` bytes of the source `name`; raises ShardsError if it is shorter by now."""
    data = place.at(offset, size)
    if len(data) < size:
        raise ShardsError(f"the source changed while it was read: {name} is shorter now")
    return data


def bare_name(name: str) -> str:
    """Return the name of an archive without what says that it is one."""
    stem = stem_and_ending(name)[0]
    return stem_and_ending(stem)[0] if is_tar(stem) else stem


def is_tar(path: str) -> bool:
    """Whether a member is a tar, which is a class folder."""
    stem, ending = path[:-4], path[-4:]
    return ending.lower() == ".tar" and bool(stem) and stem[-1] != "/"
