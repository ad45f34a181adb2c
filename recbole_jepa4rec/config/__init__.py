"""RecBole's Config with our layers, the models' names, and what a setting may be."""
