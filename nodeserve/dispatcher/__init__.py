"""Stand between gateways and workers and carry out what the router decides."""
