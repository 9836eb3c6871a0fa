"""What the log_* flags record of single steps."""
