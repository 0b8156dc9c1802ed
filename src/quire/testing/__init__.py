"""What Quire tests itself with, shipped for backends and applications of your own. Needs the extra `testing`."""
