"""The nodeserve command, one file per subcommand."""
