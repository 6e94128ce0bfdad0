"""The command line: one verb, one file. Imports stay inside the verb that needs them."""
