"""What is optimised; the loop itself is written once, in training/loop.py."""
