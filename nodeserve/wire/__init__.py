"""Say what travels between processes; pure, no sockets."""
