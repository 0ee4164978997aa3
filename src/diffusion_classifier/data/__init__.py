"""Images and data sets, as files hold them; prompts; corruptions; the scenes world."""
