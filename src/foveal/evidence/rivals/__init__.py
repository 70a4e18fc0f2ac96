"""Networks and procedures that methods are compared with: plain, a file each."""
