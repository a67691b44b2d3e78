"""The shell of operators and scripts: one registry of commands, an interactive and a batch face."""
