"""The exporter: says the node's figures to Prometheus."""
