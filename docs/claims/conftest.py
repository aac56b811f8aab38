"""The pages are made from the claims' files and hold no examples."""

collect_ignore_glob = ["*.md"]
