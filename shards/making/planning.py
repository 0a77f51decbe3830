"""Plans every split, or finds that its earlier plan still holds.

Several runs may come here at once: parts of one plan, or runs that know nothing of each other. A
plan's file is created by one of them; the others compare theirs with it, and go on or are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO

from pipeline.common.atomic import PartialFile
from pipeline.common.progress import Progress
from shards.errors import ShardsError
from shards.making.finish import missing_shards
from shards.making.listing import ListedCorpus
from shards.making.members import LOOKED_AT, common_ending
from shards.making.partial import partial_file, settle
from shards.making.plan import Plan, PlanRows, make_plans, planned_anew
from shards.making.resume import check_contents, check_foreign, check_options, check_source
from shards.options import Options, crops_of, parse_split
from shards.sources import Source
from shards.store import Store


@dataclass(frozen=True)
class Planner:
    """Plans the splits of one run of `shard`, whose arguments these are."""

    store: Store
    sources: Sequence[Source]
    options: Options
    workers: int
    part: tuple[int, int]
    progress: Progress | None

    def plans(self, corpus: ListedCorpus) -> list[Plan]:
        """Return every split's plan: the earlier one if it still holds, else a new one.

        Raises:
            ShardsError: the destination holds something else.
        """
        names = self.store.names()
        splits = list(parse_split(self.options.split))
        stored = {split: Plan.read(self.store, split) for split in splits}
        for split, plan in stored.items():
            if plan is None:
                check_foreign(self.store, split, names)
            else:
                check_options(self.store, plan, self.options)
        plans = [plan for plan in stored.values() if plan and plan.stamp == corpus.stamp]
        return plans if len(plans) == len(splits) else self._new_plans(corpus, stored)

    def _new_plans(self, corpus: ListedCorpus, stored: Mapping[str, Plan | None]) -> list[Plan]:
        """Plan anew; a stored plan that differs in nothing but times is kept."""
        with contextlib.ExitStack() as stack:
            files = {
                split: stack.enter_context(partial_file(self.store, f".{split}.plan.parquet"))
                for split in stored
            }
            rows = {split: partial.file for split, partial in files.items()}
            ending = self._ending(corpus, stored)
            plans = make_plans(corpus, self.options, rows, self._duplicates(corpus), ending)
            with _withdrawn_if_refused(self.store) as claimed:
                for split in sorted(files):  # lest two runs each take a split that the other needs
                    draft = stack.enter_context(_draft(plans[split], files[split]))
                    before = stored[split] or self._claim(draft, claimed)
                    plans[split] = self._going_on(before, draft, corpus) if before else draft.plan
        return list(plans.values())

    def _claim(self, draft: _Draft, claimed: list[Plan]) -> Plan | None:
        """Store the draft's plan, or return that of a run that was quicker.

        Raises:
            ShardsError: the other run has other options.
        """
        self._store_rows(draft)
        try:
            draft.plan.claim(self.store)
        except FileExistsError:
            before = Plan.read(self.store, draft.plan.split)
            if before is None:
                raise planned_anew(self.store, draft.plan.split) from None
            if before.rows != draft.plan.rows:
                self.store.remove(draft.plan.rows)
            check_options(self.store, before, self.options)
            return before
        claimed.append(draft.plan)
        return None

    def _going_on(self, before: Plan, draft: _Draft, corpus: ListedCorpus) -> Plan:
        """Return the earlier plan, with the times of change from the draft.

        Raises:
            ShardsError: it is not for what this corpus holds.
        """
        if before.stamp == corpus.stamp:
            return before
        gone = self._check_same(before, corpus, draft)
        if gone:
            return replace(before, notes=[*before.notes, gone])
        if self.part != (0, 1):
            return before
        self._store_rows(draft)
        draft.plan.write(self.store)
        if before.rows_file != draft.plan.rows:
            self.store.remove(before.rows_file)
        return draft.plan

    def _store_rows(self, draft: _Draft) -> None:
        if draft.plan.rows not in self.store.names():
            settle(self.store, draft.partial, draft.plan.rows)

    def _check_same(self, before: Plan, corpus: ListedCorpus, draft: _Draft) -> str:
        """Refuse to go on when `draft` and the earlier plan `before` differ.

        Returns a sentence on pictures that are gone, where that is all that differs.
        """
        missing = set(missing_shards(self.store.names(), before))
        with (
            PlanRows(draft.rows, draft.plan) as now,
            PlanRows.of(self.store, before) as then,
        ):
            if before.source_digest != corpus.digest:
                both = (then, now)
                return check_source(self.store, before, corpus.digest, both, bool(missing))
            done = set(before.part(self.part)) - missing
            crops = crops_of(self.options.augment)
            check_contents(self.store, before.split, then, now, done, self.sources, crops)
        return ""

    def _ending(self, corpus: ListedCorpus, stored: Mapping[str, Plan | None]) -> str:
        """Return the ending of all pictures: that of shards that are there already, if any."""
        before = next((plan for plan in stored.values() if plan), None)
        if before is not None:
            return before.ending
        return common_ending(corpus.tally, self.sources, corpus.first(LOOKED_AT))

    def _duplicates(self, corpus: ListedCorpus) -> dict[str, str]:
        """Return the duplicates to leave out, if the options ask for it."""
        kind = self.options.dedupe
        if kind == "none":
            return {}
        from shards.making.duplicates import (
            find_duplicates,  # needs SciPy, which takes long to import
        )

        return find_duplicates(corpus, self.sources, kind, self.workers, self.progress)


@dataclass(frozen=True)
class _Draft:
    """A plan that is not stored yet, and its rows: as they are written, and open for reading."""

    plan: Plan
    partial: PartialFile
    rows: IO[bytes]


@contextlib.contextmanager
def _draft(plan: Plan, partial: PartialFile) -> Iterator[_Draft]:
    """Yield the draft of a plan, whose rows are named after their digest.

    So parts of one plan store the same file, and other runs never one of that name.
    """
    partial.flush()
    with partial.path.open("rb") as rows:
        digest = hashlib.file_digest(rows, "sha256").hexdigest()[:16]
        yield _Draft(replace(plan, rows=f".{plan.split}.plan.{digest}.parquet"), partial, rows)


@contextlib.contextmanager
def _withdrawn_if_refused(store: Store) -> Iterator[list[Plan]]:
    """Yield a list for plans that were claimed; an error inside gives them up again."""
    claimed: list[Plan] = []
    try:
        yield claimed
    except ShardsError:
        for plan in claimed:
            store.remove(Plan.file_name(plan.split))
            store.remove(plan.rows)
        raise
