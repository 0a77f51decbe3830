"""`python -m pipeline`: the `pipeline` command where its script is not on the path."""

from __future__ import annotations

from pipeline.cli.main import main

if __name__ == "__main__":
    main()
