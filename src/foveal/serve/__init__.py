"""Pictures over HTTP: a page to drop them on and an API, over the same functions as the command line."""
