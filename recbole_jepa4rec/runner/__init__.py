"""One run: its folder, its result, its resumption, and the model it leaves behind."""
