"""Slurm's commands, run in an environment of ours.

Slurm's tools read options from the environment: a module that sets `SBATCH_PARTITION` or
`SQUEUE_STATES` changes what jobs get and which of them are found again. They are taken out here,
and so is what Slurm tells the processes of a job, in case this process runs inside one.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence

from orchestration.engines.commands import SECONDS, output_of, quoted
from orchestration.errors import EngineError, UnansweredError

# Each tool reads the variables that begin with its own name, and many of them SLURM_*.
TOOLS = (
    "SACCT", "SACCTMGR", "SALLOC", "SATTACH", "SBATCH", "SBCAST", "SCANCEL", "SCONTROL", "SDIAG",
    "SINFO", "SLURM", "SLURMD", "SPANK", "SPRIO", "SQUEUE", "SREPORT", "SRUN", "SSHARE", "SSTAT",
    "STRIGGER",
)  # fmt: skip
# Between two questions to a queue that fails, and how long it may take to say so.
PAUSES = (0.5, 2.0)
SECONDS_TO_ASK_AGAIN = 5.0
# These say which cluster is meant and who is asking, not what a job is given.
ABOUT_CLUSTER = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTER_CONF"}
# `--parsable` prints the number alone, or with the name of the cluster; what a site's wrapper makes
# of that may be sbatch's other way to say it, in colour.
NUMBER = re.compile(
    r"(?:Submitted batch job )?([1-9][0-9]*)(?:;[^\s;]+)?(?: on cluster \S+)?", re.IGNORECASE
)
COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class NoNumberError(EngineError):
    """A site's sbatch has said that it succeeded, in words of the site's own."""


def environment(
    given: Mapping[str, str] | None = None, cluster: str | None = None
) -> dict[str, str]:
    """Return the environment `given` (this process's own) as Slurm's tools may see it.

    `cluster` is the name of the cluster to ask, where there are several.
    """
    known = os.environ if given is None else given
    kept = {
        name: value
        for name, value in known.items()
        if name in ABOUT_CLUSTER or name.partition("_")[0] not in TOOLS or "_" not in name
    }
    return kept | ({"SLURM_CLUSTERS": cluster} if cluster else {})


def ask(words: Sequence[str], cluster: str | None = None, *, seconds: float = SECONDS) -> str:
    """Return what one of the tools that look or cancel prints; raises as `output_of`.

    A queue that fails at once, as a controller does that has too much to do, is asked again.
    """
    # Words that are parsed below are English ones.
    english = environment(cluster=cluster) | {"LC_ALL": "C", "LANGUAGE": "C"}
    end = time.monotonic() + SECONDS_TO_ASK_AGAIN
    for pause in PAUSES if words[0] == "squeue" else ():
        try:
            return output_of(words, environment=english, seconds=seconds)
        except UnansweredError:
            if time.monotonic() > end:
                raise
        time.sleep(pause)
    return output_of(words, environment=english, seconds=seconds)


def submit(words: Sequence[str], cluster: str | None = None) -> list[str]:
    """Return the number of the job that `sbatch --parsable` has taken.

    A site's wrapper may print more around it. Where several of its lines are numbers, all are
    returned, the last one first.

    Raises:
        UnansweredError: it failed or gave no answer in time.
        NoNumberError: it succeeded, and no line of its answer is a number.
    """
    said = output_of(words, environment=environment(cluster=cluster))
    lines = [COLOUR.sub("", line).strip() for line in reversed(said.splitlines())]
    numbers = [found[1] for line in lines if (found := NUMBER.fullmatch(line))]
    if not numbers:
        answer = quoted(said) or "nothing"
        raise NoNumberError(f"{words[0]} succeeded, but its answer has no job number: {answer}")
    return list(dict.fromkeys(numbers))
