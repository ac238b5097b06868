"""Copy KV bytes from one worker's memory into another's."""
