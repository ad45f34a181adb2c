"""Public dumps and people's own tables made into RecBole's atomic files."""
