"""The Beam programs, one a stage. They take the flags of the command `mmembed`, and Beam's after `--`."""
