"""NS107: numbers that float16 cannot hold.

float16 ends at 65504. A running variance above it becomes infinite when a model is exported or cast, and so does the square of an input
above 256 if statistics are taken in float16. A warning for a variance or an input above 65504 / 2, in evidence the bits left.
"""

import math
from collections.abc import Iterator

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation

LARGEST = 65504.0


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    found = {}
    for layer in seen.layers:
        var = float(layer.running()[1].max()) if layer.tracked else 0.0
        most = max(var, layer.largest)
        if LARGEST / 2 < most < math.inf:
            found[layer.name] = {
                "largest variance": var,
                "largest input": layer.largest,
                "bits left": math.log2(LARGEST / most),
            }
    if found:
        yield Finding(
            "NS107",
            "near the end of float16",
            "warning",
            tuple(found),
            found,
            "A variance or an input of these layers comes near 65504, the largest number of float16: under autocast, or in a model that is "
            "exported in half precision, it overflows. bfloat16 has the range of float32.",
            "ns.convert(model, \"batch:nonfinite='skip'\")  # keeps overflows out of the statistics; or use bfloat16",
            ("pytorch#88474", "coreai-torch#54"),
        )
