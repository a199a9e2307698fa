import os

# The consoles of cli/ take their width when they are made; tests give their own where it matters.
os.environ.pop("COLUMNS", None)
