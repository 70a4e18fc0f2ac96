"""One file per command; `main` lists them and loads the one that is called."""
