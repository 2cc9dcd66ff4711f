"""Say in plain words what a named shape feature means when it is higher or lower than usual.

Features are measured by the describe room; a name that is not known here is shown as it is.
"""

import re

NOT_OF_THE_CELL = re.compile(r"segmented|background_.*")
"""Features that speak of the measurement or of the slide: no reasons."""

PLAIN: tuple[tuple[str, str, str], ...] = (
    (r"area_px|equivalent_diameter_px|perimeter_px|box_(width|height)_px|area", "larger", "smaller"),
    (r"feret_max_px", "longer", "shorter"),
    (r"feret_min_px", "wider", "narrower"),
    (r"eccentricity|elongation|fourier_ellipse|fourier_2", "more elongated", "less elongated"),
    (r"axis_ratio|feret_ratio", "rounder", "less round"),
    (r"circularity", "smoother and rounder in outline", "less round in outline"),
    (r"solidity|convexity", "fuller in outline", "more dented in outline"),
    (r"concavity_depth", "more deeply dented", "less dented"),
    (r"radius_.*|fourier_.*|curvature_.*", "more uneven in outline", "more even in outline"),
    (r"spikes", "more spiky", "less spiky"),
    (
        r"taper|skew_across|point_asymmetry|density_turn_asymmetry|density_offset",
        "more lopsided",
        "more symmetric",
    ),
    (r"ring_([567]_)+density|pallor_ratio", "darker in the centre", "paler in the centre"),
    (r"ring_([01]_)+density", "darker at the edge", "paler at the edge"),
    (r"ring_([234]_)+density", "darker between edge and centre", "paler between edge and centre"),
    (r"ring_(\d_)+sd|density_cv|density_skew|density_kurtosis", "more uneven inside", "more even inside"),
    (r"gradient_.*|detail_.*", "coarser in texture", "finer in texture"),
    (r"pallor_share.*", "larger in its pale area", "smaller in its pale area"),
    (r"pallor_depth|central_pallor", "paler at its palest", "less pale at its palest"),
    (r"pallor_offset", "further off-centre in its pale area", "better centred in its pale area"),
    (r"pallor_axis_ratio", "rounder in its pale area", "more slit-like in its pale area"),
    (r"pallor_pieces", "more broken up in its pale area", "less broken up in its pale area"),
    (r"target_bump", "darker inside the pallor (as a target cell)", "less dark inside the pallor"),
    (r"density_(mean|rim|sum|red|green|blue)|mean_(red|green|blue|lightness)", "darker", "paler"),
    (r"density_red_to_green|density_blue_to_green|mean_a|mean_b", "unlike in hue", "unlike in hue"),
    (r"sd_.*", "more uneven in colour", "more even in colour"),
    (r"spot_.*", "more spotted inside", "less spotted inside"),
    (r"pale_.*", "more patchy inside", "less patchy inside"),
)
UPSIDE_DOWN = re.compile(r"mean_(red|green|blue|lightness)|detail_\d_min|curvature_min|radius_min")
"""Features of which *lower* is the first of the two phrases: a low brightness is a dark cell."""


def family(feature: str) -> str:
    """Features that say the same thing share a family, and only one of them is told."""
    return next((pattern for pattern, _, _ in PLAIN if re.fullmatch(pattern, feature)), feature)


def plain_words(feature: str, higher: bool) -> str:
    """`more elongated`; `higher in` and the feature's own name where no words are known."""
    up = higher != bool(UPSIDE_DOWN.fullmatch(feature))
    for pattern, more, less in PLAIN:
        if re.fullmatch(pattern, feature):
            return more if up else less
    return f"{'higher' if higher else 'lower'} in {feature.replace('_', ' ')}"
