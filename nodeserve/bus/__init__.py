"""Carry frames over ZeroMQ from file descriptors inside the event loop."""
