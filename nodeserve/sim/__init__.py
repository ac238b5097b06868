"""Run the cores that serve in virtual time, with every fault in the middle; does no I/O."""
