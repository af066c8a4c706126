"""From prompts to completions with their signals."""
