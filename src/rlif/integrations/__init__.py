"""Parts of rlif inside trainers of others, through their public hooks."""
