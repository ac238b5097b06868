"""Find out which GPUs, CPUs and NUMA nodes this machine has."""
