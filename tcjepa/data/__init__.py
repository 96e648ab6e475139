"""From shards to batches: index, plan, reader, captions, crops, loader."""
