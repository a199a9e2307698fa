"""Stage one: videos in, caption shards with a provable manifest out."""
