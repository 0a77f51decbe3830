"""The purposes of random draws: words of an address that keep two draws at one place apart.

A draw is a hash of (seed, ..., purpose, ...). The numbers are part of every order and every crop:
a change of one changes all trainings that are resumed.
"""

from __future__ import annotations

SHARDS, SAMPLES, CROP, SUBSTITUTE, MIXTURE, AUGMENT = range(1, 7)
CYCLE, LAST_CYCLE, PIECES, ROTATION, PHASE = range(7, 12)
