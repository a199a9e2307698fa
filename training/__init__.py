"""Skeleton encoders and skeleton-language training."""
