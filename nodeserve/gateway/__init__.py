"""Launch vLLM's own front ends, one per listener."""
