"""The matrices of Winograd's minimal filtering F(m×m, 3×3), by the construction of Cook and Toom.

With n = m + 2 and n - 1 points a_i, and infinity as the last:

    A^T[k, i] = a_i^k     G[i, k] = a_i^k / Π_{j≠i} (a_i - a_j)    B^T[i] = coefficients of Π_{j≠i} (x - a_j)
    A^T[m-1, ∞] = 1       G[∞, 2] = 1                              B^T[∞] = coefficients of Π_j (x - a_j)

and y = A^T [(G g G^T) ⊙ (B^T d B)] A for a tile d of n × n and a filter g of 3 × 3.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

POINTS: dict[int, tuple[float, ...]] = {
    2: (0.0, 1.0, -1.0),
    4: (0.0, 1.0, -1.0, 2.0, -2.0),
    6: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5),
}
"""Per output size m of a tile: the finite points. All coefficients are exact in binary."""


@cache
def output_matrix(m: int) -> npt.NDArray[np.float64]:
    """A^T, (m, m + 2)."""
    points = POINTS[m]
    matrix = np.zeros((m, m + 2))
    matrix[:, :-1] = np.array([[point**power for point in points] for power in range(m)])
    matrix[m - 1, -1] = 1
    return matrix


@cache
def weight_matrix(m: int) -> npt.NDArray[np.float64]:
    """G, (m + 2, 3)."""
    points = POINTS[m]
    matrix = np.zeros((m + 2, 3))
    for row, point in enumerate(points):
        scale = np.prod([point - other for other in points if other != point])
        matrix[row] = np.array([1.0, point, point**2]) / scale
    matrix[-1, 2] = 1
    return matrix


@cache
def input_matrix(m: int) -> npt.NDArray[np.float64]:
    """B^T, (m + 2, m + 2)."""
    points = POINTS[m]
    matrix = np.zeros((m + 2, m + 2))
    for row, point in enumerate(points):
        matrix[row, :-1] = np.poly([other for other in points if other != point])[::-1]
    matrix[-1] = np.poly(points)[::-1]
    return matrix
