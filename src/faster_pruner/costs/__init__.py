"""What sublayers cost, and budgets."""
