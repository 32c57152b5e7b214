"""What flowrun costs, beside hand-written floors and its peers: ``make bench``."""
