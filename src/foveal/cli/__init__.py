"""The command line, one file per command; `main` lists the commands and loads the one that is called."""
