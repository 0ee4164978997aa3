"""What can be seen in results; nothing imports it but the command line."""
