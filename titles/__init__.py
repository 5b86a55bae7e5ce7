"""What the scripts on top share. Each room says in its first lines what its one job is."""
