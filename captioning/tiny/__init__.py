"""The embedded tiny Qwen3-VL: its data stream, training script and weights."""
