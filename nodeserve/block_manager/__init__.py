"""The process that owns the node's KV below the GPUs: the host tier, and disk behind it."""
