"""Launch a scheduler's job: `accelerate launch`, guarded as `pipeline train` guards it.

    python -P -m recipes.launching.job OPTIONS recipes/train.py RECIPE.yaml [key=value ...]

Variables of other launchers in the job's shell are left out, the user's default file of Accelerate
is not read, the processes that train keep their state and end when the job's script is gone, and
their own exit code is this program's.

An `accelerate` of the site's own that comes first on PATH, which sets something and then starts
Accelerate's, is run in place of Accelerate: what it starts is the site's to guard.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.config.bundled import ROOT, shipped
from recipes.launching import accelerate
from recipes.launching.command import ON_CPUS, cpu_variables
from recipes.launching.environment import for_own_launch, listed
from recipes.launching.local import PLAIN
from recipes.launching.owner import end_with_parent
from recipes.launching.ranks import SCRIPT, forget

CONFIG = "--config_file"
# A line of the script that any installer of Accelerate makes.
OWN_ENTRY = b"accelerate.commands"


def main() -> int:
    """Launch what the command line says; return the first failed process's exit code."""
    words = options(sys.argv[1:])
    ignored = prepare(on_cpus=ON_CPUS in sys.argv)
    if ignored:
        sys.stderr.write(f"train: ignored, the recipe decides: {listed(ignored)}\n")
    wrapper = sites_own(os.environ.get("PATH"))
    if wrapper is not None:
        sys.stderr.write(f"train: launched by {wrapper}, which is not Accelerate's own command\n")
        sys.stderr.flush()
        for number in accelerate.LEFT_TO_RANKS:
            signal.signal(number, signal.SIG_IGN)
        os.execv(wrapper, [str(wrapper), "launch", *words])
    sys.argv[1:] = words
    end_with_parent()
    return accelerate.launch()


def sites_own(path: str | None) -> Path | None:
    """Return the `accelerate` that is found first in `path`, unless it is Accelerate's own."""
    found = shutil.which("accelerate", path=path)
    if found is None or OWN_ENTRY in Path(found).read_bytes():
        return None
    return Path(found)


def options(given: Sequence[str]) -> list[str]:
    """Return the options of `accelerate launch`; a plain launch file where the job names none."""
    words = [word for word in given if word != ON_CPUS]
    script = next((n for n, word in enumerate(words) if word.endswith(SCRIPT)), len(words))
    named = [n for n, word in enumerate(words[:script]) if word.partition("=")[0] == CONFIG]
    if not named:
        return [CONFIG, str(ROOT / PLAIN), *words]
    for n in named:
        # As a word of its own, or after an equals sign.
        flag, equals, value = words[n].partition("=")
        if equals:
            words[n] = f"{flag}={shipped(value)}"
        elif n + 1 < len(words):
            words[n + 1] = shipped(words[n + 1])
    return words


def prepare(*, on_cpus: bool) -> dict[str, str]:
    """Clean this process's environment for a launch; return the variables that were left out."""
    clean, ignored = for_own_launch(os.environ)
    ranks = dict(clean)
    forget(clean)
    ignored |= {name: value for name, value in ranks.items() if name not in clean}
    os.environ.clear()
    os.environ.update(clean | cpu_variables(0 if on_cpus else 1))
    return dict(sorted(ignored.items()))


if __name__ == "__main__":
    sys.exit(main())
