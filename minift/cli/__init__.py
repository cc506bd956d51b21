"""The command line: main.py has the table of verbs; each verb is a function in a file beside it."""
