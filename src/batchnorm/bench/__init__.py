"""What a user gains: this library's layers beside others, on the user's own machine, correct first."""
