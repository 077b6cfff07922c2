"""Classes that the behaviours ask for and that no training shows."""

HELD_OUT = (
    # Training sees all words of these labels, in other labels ...
    "traffic_light",
    "pool_table",
    "shower_curtain",
    # ... one of two words of these ...
    "window_blind",
    "swivel_chair",
    "bathroom_counter",
    "teddy_bear",
    "junction_box",
    # ... and no word of these.
    "horse",
    "bus",
)
"""Universal classes that never occur in training scenes, but in every second validation scene."""

SUPER_CLASSES: dict[str, tuple[str, ...]] = {
    "traffic": ("traffic_sign", "traffic_light"),
    "pool": ("swimming_pool", "pool_table"),
    "curtain": ("curtain_other", "shower_curtain"),
    "window": ("window", "window_blind"),
    "chair": ("chair_other", "swivel_chair"),
    "counter": ("counter_other", "bathroom_counter"),
    "bear": ("bear", "teddy_bear"),
    "box": ("box", "junction_box"),
}
"""Words that name several classes at once, and the members they should find."""
