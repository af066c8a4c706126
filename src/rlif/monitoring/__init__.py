"""What is watched while a policy trains. Nothing here imports a trainer."""
