"""This process among the others: who we are, how many, and how the job ends."""
