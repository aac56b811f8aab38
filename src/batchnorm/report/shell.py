"""The page's frame, kept as text (as are its style and script) so that an installed package needs no data files."""

__all__ = ["PAGE"]

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#start">Skip to the text</a>
$contents
<main id="start" tabindex="-1">
<h1>$title</h1>
<p class="lead">$lead</p>
$noscript$body
<footer>$footer</footer>
</main>
<script type="application/json" id="charts">$charts</script>
<script>$plotly</script>
<script>$script</script>
</body>
</html>
"""
