"""The `pipeline` command: parses, calls, prints."""
