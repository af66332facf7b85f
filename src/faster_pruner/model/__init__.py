"""What a model consists of, how it is looked into, and how it is made smaller."""
