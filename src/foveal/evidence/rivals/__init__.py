"""Plain networks and procedures that methods are compared with, one file each."""
