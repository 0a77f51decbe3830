"""Names of a plan's objects on Kubernetes, within the rules that JobSet's webhook applies.

A pod is called SET-ENTRY-0-INDEX-abcde, with five random characters at its end. That must be a DNS
label (RFC 1035: 63 characters, small letters, digits and dashes, a letter first), or the whole set
is refused. Names are cut to fit; numbers keep them apart, and labels and annotations say in full
what they stand for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from orchestration.plan import Job

LONGEST = 63
LONGEST_SET = 23
# "-0-" and "-abcde" around a pod's index, and "-n9" of a job that only waits.
AROUND = len("-" + "-0-" + "-abcde" + "-n9")
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?")
DIGEST = 8


def set_name(plan_id: str, turn: int) -> str:
    """Return a name for the set of the plan's submission number `turn`; a Service has it too.

    The end of a plan's id is what no other plan has, so a long one loses its middle.
    """
    name = _slug(plan_id)
    name = name if name[:1].isalpha() else f"p{name}"
    if len(name) > LONGEST_SET:
        name = f"{name[: LONGEST_SET - 5].strip('-')}{name[-5:]}"
    return f"{name}-{turn}"


def entry_names(jobs: Sequence[Job], set_name: str) -> dict[str, str]:
    """Return what each job of a plan is called inside its set; no two are the same."""
    names = {}
    for index, job in enumerate(jobs):
        last = max(job.parts, job.resources.nodes) - 1
        room = LONGEST - AROUND - len(set_name) - len(str(last)) - len(f"-{index}")
        names[job.name] = f"{_slug(job.name)[:room].strip('-')}-{index}"
    return names


def label_of(name: str) -> str:
    """Return `name` if it may be the value of a label, else one made of its beginning and a digest.

    A label's value has at most 63 characters, and begins and ends with a letter or a digit.
    """
    if len(name) <= LONGEST and LABEL.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:DIGEST]
    start = re.sub(r"[^A-Za-z0-9_.-]", "-", name)[: LONGEST - DIGEST - 1].strip("-_.")
    return f"{start}-{digest}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
