"""What a team would do instead of learning a prompt."""
