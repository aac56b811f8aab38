"""The colours of lines and points, by number: the same in every picture, drawn by plotly or by this package."""

__all__ = ["DARK", "DARK_WORDS", "LIGHT", "LIGHT_WORDS"]

# Okabe and Ito's palette; index 0 is the grey of a baseline. The light one leaves out its yellow and the dark
# one its deep blue, which would be hard to see. Thin letters need more contrast than thick lines do, so names have
# darker shades of the same hues where the ground is light.
LIGHT = ("#5f5f5f", "#0072B2", "#D55E00", "#009E73", "#A9528A", "#B77400", "#3B8FC4")
DARK = ("#b5b5b0", "#56B4E9", "#F0813A", "#2CC39A", "#E09AC6", "#E69F00", "#9AD2F5")
LIGHT_WORDS = ("#555555", "#005F96", "#A84600", "#006E50", "#8C3B70", "#805000", "#1F6796")
DARK_WORDS = DARK
