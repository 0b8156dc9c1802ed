"""The demo: Quire's main job on real input, on any machine that has Python."""
