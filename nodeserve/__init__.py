"""Serve large language models on all the GPUs of one node."""
