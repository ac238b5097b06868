"""Pretend to be a vLLM engine, with honest timing and KV accounting."""
