"""The command line: commands.py is the table; a command is a file and a function of its name."""
