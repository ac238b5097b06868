"""Run vLLM's own EngineCore and API server; the only importer of vllm and torch."""
