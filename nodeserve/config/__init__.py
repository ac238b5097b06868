"""Turn a TOML file and flags into one frozen, whole-checked NodeConfig."""
