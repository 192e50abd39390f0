"""An example of a metric of one's own: what the model's mistakes would cost an insurer of roofs.

A roof is insured at the price of the material that the model sees. Seen as a dearer one, the owner pays too much, and
some of them leave; seen as a cheaper one, a hailstorm costs the insurer the difference.
"""

import numpy as np

#: What a square metre of new roof costs, in euros: an example's figures.
PRICES = {
    "terracotta tiles": 90,
    "slate": 140,
    "standing-seam metal": 120,
    "green roof": 160,
    "asphalt shingles": 40,
    "thatch": 180,
    "white membrane": 60,
}
LEAVING = 0.2  # the share of a too high price that is lost with owners who leave


def cost_matrix(classes: list[str]) -> np.ndarray:
    """The cost in euros a square metre of seeing the class of a column where that of the row is."""
    prices = np.array([PRICES[name] for name in classes], float)
    too_low = prices[:, None] - prices[None]
    return np.maximum(too_low, 0) + LEAVING * np.maximum(-too_low, 0)


def cost(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> dict[str, float]:
    """The mean cost of the model's answers, and of the best ones that its probabilities allow.

    Args:
        labels: the numbers of the true classes, (images,).
        probabilities: (images, classes).
        classes: their names.

    Returns:
        ``answer``: of insuring every roof as its most probable class; ``best``: of insuring it as the class with the
        least expected cost (the Bayes decision).
    """
    costs = cost_matrix(classes)
    answer = probabilities.argmax(axis=1)
    best = (probabilities @ costs).argmin(axis=1)
    return {"answer": float(costs[labels, answer].mean()), "best": float(costs[labels, best].mean())}
