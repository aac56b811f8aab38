"""The pages' examples run where they are written, in the rules' files: not a second time here."""

collect_ignore_glob = ["*.md"]
