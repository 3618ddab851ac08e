"""The command line `moe-md`, one file per command."""
