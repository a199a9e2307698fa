"""Videos in, caption shards with a provable manifest out."""
