"""An example of a metric of your own: what the model's mistakes would cost an insurer of roofs.

A roof is insured at the price of the material that the model predicts. If that material is more expensive than the
true one, the owner pays too much, and some owners leave. If it is cheaper, the insurer pays the difference after a
hailstorm.
"""

import numpy as np

#: What a square metre of new roof costs, in euros. The numbers are made up for the example.
PRICES = {
    "terracotta tiles": 90,
    "slate": 140,
    "standing-seam metal": 120,
    "green roof": 160,
    "asphalt shingles": 40,
    "thatch": 180,
    "white membrane": 60,
}
LEAVING = 0.2  # the share of the excess price that is lost because owners leave


def cost_matrix(classes: list[str]) -> np.ndarray:
    """The cost of each mistake in euros per square metre: true class by row, predicted class by column."""
    prices = np.array([PRICES[name] for name in classes], float)
    too_low = prices[:, None] - prices[None]
    return np.maximum(too_low, 0) + LEAVING * np.maximum(-too_low, 0)


def cost(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> dict[str, float]:
    """The mean cost of the model's answers, and of the least expensive answers given its probabilities.

    Args:
        labels: the index of each image's true class, (images,).
        probabilities: (images, classes).
        classes: the names of the classes.

    Returns:
        ``answer``: the cost if every roof is insured as its most probable class; ``best``: the cost if it is insured
        as the class with the least expected cost (the Bayes decision).
    """
    costs = cost_matrix(classes)
    answer = probabilities.argmax(axis=1)
    best = (probabilities @ costs).argmin(axis=1)
    return {"answer": float(costs[labels, answer].mean()), "best": float(costs[labels, best].mean())}
