"""Images, texts and recordings: what each is called, and images as they are stored."""
