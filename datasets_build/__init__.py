"""Skeletons, captions and protocol facts become one Arrow data set; imports no torch."""
