"""One architecture a file; no file knows a loss."""
