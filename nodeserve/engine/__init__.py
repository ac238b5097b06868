"""Run a model, or pretend to, behind the EngineCore wire."""
