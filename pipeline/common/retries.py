"""One policy for what may fail for a while: tries, and between them pauses that grow."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pipeline.common.secrets import redacted

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retries:
    """How often something is tried, and how long between two tries.

    Attributes:
        attempts: tries, the first included.
        pause: seconds before the second try; doubled for each further one, and spread at random.
        longest_pause: seconds that a pause never exceeds.
    """

    attempts: int = 4
    pause: float = 1.0
    longest_pause: float = 30.0

    def pause_after(self, tried: int) -> float:
        """Return the seconds to wait after `tried` tries: between a half and all of the pause.

        The spread keeps many processes that failed together from coming back together.
        """
        pause = min(self.pause * 2.0 ** min(tried - 1, 60), self.longest_pause)
        return pause * random.uniform(0.5, 1.0)

    def call(
        self, attempt: Callable[[], T], what: str, final: tuple[type[BaseException], ...] = ()
    ) -> T:
        """Return `attempt()`, tried again while it raises an exception that is not `final`.

        Args:
            attempt: what to try.
            what: its name in the log.
            final: kinds of exceptions that another try can't mend; raised at once.

        Raises:
            Exception: what the last try raised, or a `final` one.
        """
        tried = 1
        while True:
            try:
                return attempt()
            except final:
                raise
            except Exception as error:
                if tried >= self.attempts:
                    raise
                said = redacted(f"try {tried} of {self.attempts} for {what} failed: {error}")
                log.info("%s", said)
            time.sleep(self.pause_after(tried))
            tried += 1
