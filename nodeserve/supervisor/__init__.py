"""Own every process of the node, its sockets and its runtime directory."""
