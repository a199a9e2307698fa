"""The `hoc` command: parses, calls one run(config), prints."""
