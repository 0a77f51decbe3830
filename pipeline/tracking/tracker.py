"""The training loop's interface to a run: its calls return at once, whatever the server does.

Every call appends a record to the run folder's spool, and a thread delivers them (`delivery`). So a
server that is down for minutes delays what it shows of the run, not the run itself. Nothing is lost
even when the process is killed: the resumed run delivers the rest.
"""

from __future__ import annotations

import atexit
import json
import logging
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.atomic import NoSpaceError
from pipeline.common.references import by_key
from pipeline.common.secrets import redacted, without_user
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.environment import surroundings, tags_from
from pipeline.tracking.errors import TrackingError
from pipeline.tracking.spool import Spool, State, last_steps
from pipeline.tracking.store import tracking_uri
from pipeline.tracking.system import SystemSampler

if TYPE_CHECKING:
    import numpy as np

SYSTEM = "system/"
NAME = re.compile(r"[\w.\-/: ]{1,250}")
ENDS = ("FINISHED", "FAILED", "KILLED")
# A server that is up answers well within this; one that is not must not hold up the start.
START_SECONDS = 30.0
log = logging.getLogger(__name__)


class Tracker:
    """One MLflow run, made by `start` and closed by `finish`. Only rank 0 has a tracker."""

    def __init__(
        self, spool: Spool, delivery: Delivery, seen: Mapping[tuple[str, str], int]
    ) -> None:
        """Use `start`."""
        self._spool = spool
        self._delivery = delivery
        self._seen = seen
        first = 1 + max((s for (_, name), s in seen.items() if name.startswith(SYSTEM)), default=-1)
        self._sampler = SystemSampler(self.log, first)
        self._delivered: bool | None = None
        self._temporary: Path | None = None
        atexit.register(self._stop)

    @classmethod
    def start(
        cls,
        experiment: str,
        run_name: str,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None = None,
        parent_run_id: str | None = None,
        uri: str | None = None,
        folder: Path | None = None,
    ) -> Tracker:
        """Begin a run, or continue the one that `folder` (or `run_id`) knows.

        Args:
            experiment: its name; it is created if it is missing.
            run_name: the run's name, shown in MLflow.
            params: settings, nested as they are; written as `a.b.c`, lists as JSON.
            tags: text about the run.
            run_id: continue this MLflow run; None: continue the folder's own run, else a new one.
            parent_run_id: the run that this one builds on: its id, or its `reference`.
            uri: the store; None: MLflow's own settings, else SQLite in the working folder.
            folder: the run folder, where undelivered records survive a kill; None: a temporary one.

        Raises:
            TrackingError: the store refuses (credentials, an unknown `run_id`, a bad name).
        A store that can't be reached now is no error: `run_id` is "" until it can.
        """
        where = folder or Path(tempfile.mkdtemp(prefix="tracking-"))
        spool = Spool(where)
        state = spool.load_state() or State(uuid.uuid4().hex, experiment, run_name, "")
        state = spool.save_state(
            state, run_id=run_id or state.run_id, uri=without_user(tracking_uri(uri))
        )
        spool.sweep(state.delivered)
        seen = last_steps(spool)
        about = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
        delivery = Delivery(spool, state, uri)
        tracker = cls(spool, delivery, seen)
        tracker._temporary = where if folder is None else None
        try:
            tracker._begin(params, {**about, **tags})
            delivery.start(START_SECONDS)
        except BaseException:
            tracker._stop()
            raise
        tracker._sampler.start()
        return tracker

    def _begin(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Record the settings and the surroundings of this start."""
        details = surroundings()
        about = {key: redacted(value) for key, value in (tags_from(details) | dict(tags)).items()}
        settings = {key: redacted(value) for key, value in flat(params).items()}
        self._spool.append(_record("begin", params=settings, tags=about))
        when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        if diff := details["git"].pop("diff", ""):
            self.log_text(diff, f"{when}.diff", "surroundings")
        self.log_text(json.dumps(details, indent=2), f"{when}.json", "surroundings")

    @property
    def run_id(self) -> str:
        """The MLflow run's id; "" while the store has not been reached yet."""
        return self._delivery.state.run_id

    @property
    def reference(self) -> str:
        """What finds the run: its id, or `key:KEY` while the store has not been reached yet."""
        state = self._delivery.state
        return state.run_id or by_key(state.key)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record `metrics` at `step`; a resumed run's repeated steps count once.

        Raises TrackingError for a name that MLflow can't take.
        """
        for name in metrics:
            _check(name)
        values = {k: float(v) for k, v in metrics.items() if self._is_new("metrics", k, step)}
        if values:
            self._spool.append(_record("metrics", step=step, values=values))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; a tag that is there is replaced."""
        self._spool.append(_record("tags", tags={k: redacted(v) for k, v in tags.items()}))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep the file `path` with the run, in its artifact folder `folder`.

        The file may be removed or replaced (by renaming) afterwards, but not changed in place.
        """
        staged = self._spool.stage(path, path.name)
        self._spool.append(_record("file", staged=staged, folder=folder))

    def log_text(self, text: str, name: str, folder: str = "") -> None:
        """Keep `text` with the run as the file `name` in its artifact folder `folder`."""
        staged = self._spool.stage(redacted(text).encode(), name)
        self._spool.append(_record("file", staged=staged, folder=folder))

    def log_image(self, array: np.ndarray, name: str, step: int) -> None:
        """Show a picture (uint8, height x width x 3) under `name` at `step` in MLflow's charts."""
        from io import BytesIO

        from PIL import Image

        _check(name)
        if not self._is_new("image", name, step):
            return
        data = BytesIO()
        Image.fromarray(array).save(data, "PNG", compress_level=1)
        staged = self._spool.stage(data.getvalue(), "image.png")
        self._spool.append(_record("image", staged=staged, name=name, step=step))

    def dataset(self, name: str, digest: str, source: str) -> None:
        """Record the data of the run: the digest of the shards' manifest, and its place."""
        self._spool.append(_record("dataset", name=name, digest=digest, source=redacted(source)))

    def finish(self, status: str = "FINISHED", seconds: float = 60.0) -> bool:
        """End the run (FINISHED, FAILED or KILLED) and wait up to `seconds` for the delivery.

        Returns whether everything was delivered; if not, the rest waits in the run folder for
        `deliver` or for the run to be resumed.
        """
        if status not in ENDS:
            raise TrackingError(f"a run ends as one of {', '.join(ENDS)}, not as {status}")
        if self._delivered is not None:
            return self._delivered
        self._sampler.stop()
        try:
            self._spool.append(_record("end", status=status))
        except NoSpaceError as error:
            if status == "FINISHED":
                raise
            log.warning("%s", error)  # what ended the run is worth more
        self._delivered = self._delivery.drain(seconds)
        self._stop()
        if self._delivered and self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        return self._delivered

    def _is_new(self, kind: str, name: str, step: int) -> bool:
        """Tell whether no earlier start of this run has logged this."""
        return step > self._seen.get((kind, name), -1)

    def _stop(self) -> None:
        atexit.unregister(self._stop)
        self._sampler.stop()
        self._delivery.stop()


def flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as one level: `{"a": {"b": 1}}` as `{"a.b": "1"}`; lists as JSON."""
    result: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            result[f"{prefix}{key}"] = text
    return result


def _record(kind: str, **content: Any) -> dict[str, Any]:
    return {"kind": kind, "time": time.time_ns() // 1_000_000, **content}


def _check(name: str) -> None:
    if not NAME.fullmatch(name):
        raise TrackingError(
            f"the name {name!r} can't be used in MLflow: letters, digits, blanks and _ - . / : are "
            "allowed, 250 at most"
        )
