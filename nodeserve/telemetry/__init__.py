"""Log lines and latency quantiles."""
