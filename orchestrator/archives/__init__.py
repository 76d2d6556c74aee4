"""Where archives lie: a folder, or a bucket."""
