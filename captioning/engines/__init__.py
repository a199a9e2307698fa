"""The engines that turn planned batches of frames into text."""
