"""Stage two: skeleton encoders and skeleton-language training."""
