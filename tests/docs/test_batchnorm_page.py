"""Each formula on docs/batchnorm.md, written out in NumPy as it stands there, against the reference.

The source of the formula stands beside its comparison: a formula that is new or changed on the page fails
until somebody has looked at the comparison too.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from batchnorm import reference

PAGE = Path(__file__).parents[2] / "docs" / "batchnorm.md"
TEXT = PAGE.read_text(encoding="utf-8")

FORMULAS: dict[str, tuple[str, Callable[[], None]]] = {}


def formula(label, latex):
    """Register the comparison for one formula of the page."""

    def register(comparison):
        assert label not in FORMULAS, f"two comparisons for {label}"
        FORMULAS[label] = (" ".join(latex.split()), comparison)
        return comparison

    return register


def formulas_on_the_page(text):
    """Label and source of every $$ block that has a label right above it."""
    pattern = re.compile(r"^<!-- formula: ([a-z0-9-]+) -->\n\$\$\n(.*?)\n\$\$$", re.MULTILINE | re.DOTALL)
    return [(label, " ".join(source.split())) for label, source in pattern.findall(text)]


# One batch of images; a column of its values is a channel, as on the page.
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.normal([[[[2.0]], [[-5.0]], [[0.3]]]], [[[[1.0]], [[3.0]], [[0.01]]]], (2, 3, 2, 3))
RESIDUAL = GENERATOR.normal(size=IMAGES.shape)
UPSTREAM = GENERATOR.normal(size=IMAGES.shape)
GAMMA, BETA, EPS = np.array([1.5, -0.7, 0.4]), np.array([0.2, 1.0, -0.3]), 1e-3
BATCHES = [GENERATOR.normal(offset, 1.0, (4, 3)) for offset in (0.0, 1.0, 5.0, -2.0)]


def columns(values):
    """(N, C, H, W) as (m, C)."""
    return np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])


def images(rows):
    """(m, C) as the batch of images it came from."""
    n, c, h, w = IMAGES.shape
    return np.moveaxis(rows.reshape(n, h, w, c), -1, 1)


X, DY, S = columns(IMAGES), columns(UPSTREAM), columns(RESIDUAL)  # (m, C)
M = len(X)
MU = sum(X) / M  # (C,)
VARIANCE = sum((X - MU) ** 2) / M  # (C,)
X_HAT = (X - MU) / np.sqrt(VARIANCE + EPS)  # (m, C)


def silu_derivative(z):
    return 1 / (1 + np.exp(-z)) + z * np.exp(-z) / (1 + np.exp(-z)) ** 2


DZ = DY * silu_derivative(GAMMA * X_HAT + BETA + S)  # (m, C)


def transform():
    return reference.forward(IMAGES, GAMMA, BETA, residual=RESIDUAL, activation="silu", eps=EPS)


def gradients():
    _, saved = transform()
    return reference.backward(UPSTREAM, saved), reference.backward_by_chain_rule(UPSTREAM, saved)


def batch_statistics():
    parts = [reference.moments(batch) for batch in BATCHES]
    return [part.mean for part in parts], [part.variance for part in parts]


@formula("standardisation", r"\frac{x_i - \mu}{\sigma}")
def _():
    sigma = np.sqrt(VARIANCE)
    assert_allclose(columns(reference.standardize(IMAGES, MU, VARIANCE)), (X - MU) / sigma, rtol=1e-12)


@formula("min-max", r"\frac{x_i - \min_j x_j}{\max_j x_j - \min_j x_j}")
def _():
    low, high = X.min(axis=0), X.max(axis=0)
    ours = reference.scale_to_unit_interval(IMAGES, low, high)
    assert_allclose(columns(ours), (X - low) / (high - low), rtol=1e-12)


@formula("batch-mean", r"\mu = \frac{1}{m} \sum_{i=1}^{m} x_i")
def _():
    assert reference.moments(IMAGES).count == M
    assert_allclose(reference.moments(IMAGES).mean, MU, rtol=1e-12)


@formula("batch-variance", r"\sigma^2 = \frac{1}{m} \sum_{i=1}^{m} (x_i - \mu)^2")
def _():
    assert_allclose(reference.moments(IMAGES).variance, VARIANCE, rtol=1e-12)


@formula("standardised-input", r"\hat{x}_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \varepsilon}}")
def _():
    assert_allclose(columns(reference.forward(IMAGES, eps=EPS)[0]), X_HAT, rtol=1e-11)


@formula("output", r"z_i = \gamma \hat{x}_i + \beta + s_i, \qquad y_i = f(z_i)")
def _():
    z = GAMMA * X_HAT + BETA + S
    y, _ = reference.forward(IMAGES, GAMMA, BETA, residual=RESIDUAL, eps=EPS)
    assert_allclose(columns(y), z, rtol=1e-11)
    assert_allclose(columns(transform()[0]), z / (1 + np.exp(-z)), rtol=1e-11)


@formula("identity", r"\gamma = \sqrt{\sigma^2 + \varepsilon}, \qquad \beta = \mu")
def _():
    weight, bias = reference.identity_parameters(reference.moments(IMAGES), EPS)
    assert_allclose(weight, np.sqrt(VARIANCE + EPS), rtol=1e-12)
    assert_allclose(bias, MU, rtol=1e-12)
    assert_allclose(reference.forward(IMAGES, weight, bias, eps=EPS)[0], IMAGES, rtol=1e-12)


@formula("invstd", r"\frac{1}{\sqrt{\sigma^2 + \varepsilon}} \le \frac{1}{\sqrt{\varepsilon}}")
def _():
    _, saved = transform()
    assert_allclose(saved.invstd, 1 / np.sqrt(VARIANCE + EPS), rtol=1e-12)
    assert (saved.invstd < 1 / np.sqrt(EPS)).all()
    _, constant = reference.forward(np.full((3, 1), 5.0), eps=EPS)
    assert_allclose(constant.invstd, 1 / np.sqrt(EPS), rtol=1e-15)


@formula("variance-after", r"\frac{1}{m} \sum_{i=1}^{m} \hat{x}_i^2 = \frac{\sigma^2}{\sigma^2 + \varepsilon}")
def _():
    y, _ = reference.forward(IMAGES, eps=EPS)
    assert_allclose(sum(columns(y) ** 2) / M, VARIANCE / (VARIANCE + EPS), rtol=1e-12)


@formula(
    "unbiased-variance",
    r"""\sigma_{\text{unbiased}}^2 = \frac{m}{m-1} \sigma^2 = \frac{1}{m-1} \sum_{i=1}^{m} (x_i - \mu)^2""",
)
def _():
    ours = reference.moments(IMAGES).unbiased_variance
    assert_allclose(ours, M / (M - 1) * VARIANCE, rtol=1e-12)
    assert_allclose(ours, sum((X - MU) ** 2) / (M - 1), rtol=1e-12)


@formula(
    "two-values",
    r"""m = 2, \quad \varepsilon = 0, \quad x_1 \ne x_2: \qquad
    \hat{x}_1 = -\hat{x}_2 = \mathrm{sign}(x_1 - x_2)""",
)
def _():
    pair = X[:2]
    y, _ = reference.forward(pair, eps=0.0)
    assert_allclose(y, [np.sign(pair[0] - pair[1]), -np.sign(pair[0] - pair[1])], rtol=1e-12)


@formula(
    "backward-activation",
    r"""\frac{\partial \ell}{\partial z_i} = \frac{\partial \ell}{\partial y_i} f'(z_i), \qquad
    \frac{\partial \ell}{\partial s_i} = \frac{\partial \ell}{\partial z_i}""",
)
def _():
    for ours in gradients():
        assert_allclose(columns(ours.residual), DZ, rtol=1e-11)


@formula(
    "backward-parameters",
    r"""\frac{\partial \ell}{\partial \gamma} = \sum_{i=1}^{m} \frac{\partial \ell}{\partial z_i} \hat{x}_i,
    \qquad \frac{\partial \ell}{\partial \beta} = \sum_{i=1}^{m} \frac{\partial \ell}{\partial z_i}""",
)
def _():
    for ours in gradients():
        assert_allclose(ours.weight, sum(DZ * X_HAT), rtol=1e-11)
        assert_allclose(ours.bias, sum(DZ), rtol=1e-11)


# The four lines of the chain rule build on each other, and the reference gives back the value of the last.
# The lines before are compared with differences of the loss, as a function of x̂, the variance and the mean.


def loss(mean=MU, variance=VARIANCE, x_hat=None, x=X):
    x_hat = (x - mean) / np.sqrt(variance + EPS) if x_hat is None else x_hat
    z = GAMMA * x_hat + BETA + S
    return (DY * z / (1 + np.exp(-z))).sum(axis=0)  # (C,): one loss a channel


def chain_rule():
    dx_hat = DZ * GAMMA
    dvariance = sum(dx_hat * (X - MU)) * (-1 / 2) * (VARIANCE + EPS) ** (-3 / 2)
    dmean = sum(dx_hat) * -1 / np.sqrt(VARIANCE + EPS) + dvariance * sum(-2 * (X - MU)) / M
    dx = dx_hat / np.sqrt(VARIANCE + EPS) + dvariance * 2 * (X - MU) / M + dmean / M
    return dx_hat, dvariance, dmean, dx


@formula(
    "backward-standardised",
    r"\frac{\partial \ell}{\partial \hat{x}_i} = \frac{\partial \ell}{\partial z_i} \gamma",
)
def _():
    h = 1e-6
    for i in range(M):
        step = np.zeros_like(X_HAT)
        step[i] = h
        slope = (loss(x_hat=X_HAT + step) - loss(x_hat=X_HAT - step)) / (2 * h)
        assert_allclose(chain_rule()[0][i], slope, rtol=1e-6, atol=1e-8)


@formula(
    "backward-variance",
    r"""\frac{\partial \ell}{\partial \sigma^2} = \sum_{i=1}^{m} \frac{\partial \ell}{\partial \hat{x}_i}
    (x_i - \mu) \cdot \left(-\frac{1}{2}\right) (\sigma^2 + \varepsilon)^{-3/2}""",
)
def _():
    h = 1e-7
    slope = (loss(variance=VARIANCE + h) - loss(variance=VARIANCE - h)) / (2 * h)
    assert_allclose(chain_rule()[1], slope, rtol=1e-5, atol=1e-6)


@formula(
    "backward-mean",
    r"""\frac{\partial \ell}{\partial \mu} = \sum_{i=1}^{m} \frac{\partial \ell}{\partial \hat{x}_i} \cdot
    \frac{-1}{\sqrt{\sigma^2 + \varepsilon}} + \frac{\partial \ell}{\partial \sigma^2} \cdot \frac{1}{m}
    \sum_{i=1}^{m} -2 (x_i - \mu)""",
)
def _():
    h = 1e-6
    above, below = (MU + h, sum((X - MU - h) ** 2) / M), (MU - h, sum((X - MU + h) ** 2) / M)
    slope = (loss(*above) - loss(*below)) / (2 * h)
    assert_allclose(chain_rule()[2], slope, rtol=1e-5, atol=1e-7)


@formula(
    "backward-input-paths",
    r"""\frac{\partial \ell}{\partial x_i} = \frac{\partial \ell}{\partial \hat{x}_i} \cdot
    \frac{1}{\sqrt{\sigma^2 + \varepsilon}} + \frac{\partial \ell}{\partial \sigma^2} \cdot
    \frac{2 (x_i - \mu)}{m} + \frac{\partial \ell}{\partial \mu} \cdot \frac{1}{m}""",
)
def _():
    for ours in gradients():
        assert_allclose(columns(ours.x), chain_rule()[3], rtol=1e-9, atol=1e-11)


@formula(
    "backward-input",
    r"""dx_i = \frac{\gamma}{\sqrt{\sigma^2 + \varepsilon}} \left( dz_i - \frac{1}{m} \sum_{j=1}^{m} dz_j -
    \hat{x}_i \cdot \frac{1}{m} \sum_{j=1}^{m} dz_j \hat{x}_j \right)""",
)
def _():
    dx = GAMMA / np.sqrt(VARIANCE + EPS) * (DZ - sum(DZ) / M - X_HAT * sum(DZ * X_HAT) / M)
    for ours in gradients():
        assert_allclose(columns(ours.x), dx, rtol=1e-9, atol=1e-11)


@formula(
    "orthogonality",
    r"""\sum_{i=1}^{m} dx_i = 0, \qquad \sum_{i=1}^{m} dx_i \hat{x}_i = \frac{\gamma}{\sqrt{\sigma^2 +
    \varepsilon}} \cdot \frac{\varepsilon}{\sigma^2 + \varepsilon} \sum_{i=1}^{m} dz_i \hat{x}_i""",
)
def _():
    dx = columns(gradients()[0].x)
    assert_allclose(sum(dx), 0.0, atol=1e-12)
    remainder = GAMMA / np.sqrt(VARIANCE + EPS) * EPS / (VARIANCE + EPS) * sum(DZ * X_HAT)
    assert_allclose(sum(dx * X_HAT), remainder, rtol=1e-9, atol=1e-12)


@formula(
    "scale-invariance",
    r"""\mathrm{BN}((aW)u) = \mathrm{BN}(Wu), \qquad
    \frac{\partial \ell}{\partial (aW)} = \frac{1}{a} \cdot \frac{\partial \ell}{\partial W}""",
)
def _():
    generator = np.random.default_rng(1)
    w, u, a = generator.normal(size=(3, 5)), generator.normal(size=(M, 5)), 7.0

    def output_and_gradient(weights):
        y, saved = reference.forward(u @ weights.T, GAMMA, BETA, eps=0.0)
        return y, reference.backward(DY, saved).x.T @ u  # (C, features of u)

    (scaled, scaled_gradient), (plain, gradient) = output_and_gradient(a * w), output_and_gradient(w)
    assert_allclose(scaled, plain, rtol=1e-11, atol=1e-13)
    assert_allclose(scaled_gradient, gradient / a, rtol=1e-10, atol=1e-12)


POPULATION_MEAN, POPULATION_VARIANCE = np.array([1.0, -2.0, 0.5]), np.array([0.8, 0.5, 0.1])


@formula(
    "inference",
    r"""y = a x + b, \qquad a = \frac{\gamma}{\sqrt{\sigma_{\text{pop}}^2 + \varepsilon}}, \qquad
    b = \beta - a \mu_{\text{pop}}""",
)
def _():
    a = GAMMA / np.sqrt(POPULATION_VARIANCE + EPS)
    b = BETA - a * POPULATION_MEAN
    ours = reference.scale_and_shift(POPULATION_MEAN, POPULATION_VARIANCE, GAMMA, BETA, eps=EPS)
    assert_allclose(ours, (a, b), rtol=1e-13)
    y, _ = reference.forward_evaluation(IMAGES, POPULATION_MEAN, POPULATION_VARIANCE, GAMMA, BETA, eps=EPS)
    assert_allclose(columns(y), a * X + b, rtol=1e-11)


@formula("backward-inference", r"dx_i = \frac{\gamma}{\sqrt{\sigma_{\text{pop}}^2 + \varepsilon}} dz_i")
def _():
    _, saved = reference.forward_evaluation(IMAGES, POPULATION_MEAN, POPULATION_VARIANCE, GAMMA, BETA, eps=EPS)
    dx = GAMMA / np.sqrt(POPULATION_VARIANCE + EPS) * DY  # no activation here: dz is dy
    assert_allclose(columns(reference.backward_evaluation(UPSTREAM, saved).x), dx, rtol=1e-13)


@formula(
    "running-torch",
    r"""\text{running} \leftarrow (1 - \text{momentum}) \cdot \text{running} +
    \text{momentum} \cdot \text{batch}""",
)
def _():
    mean, var = reference.update_running(POPULATION_MEAN, POPULATION_VARIANCE, reference.moments(IMAGES), momentum=0.3)
    assert_allclose(mean, (1 - 0.3) * POPULATION_MEAN + 0.3 * MU, rtol=1e-13)
    assert_allclose(var, (1 - 0.3) * POPULATION_VARIANCE + 0.3 * VARIANCE * M / (M - 1), rtol=1e-13)


@formula(
    "running-keras",
    r"""\text{moving} \leftarrow \text{momentum}_{\text{Keras}} \cdot \text{moving} +
    (1 - \text{momentum}_{\text{Keras}}) \cdot \text{batch}""",
)
def _():
    ours = reference.keras_update(POPULATION_MEAN, MU, 0.9)
    assert_allclose(ours, 0.9 * POPULATION_MEAN + (1 - 0.9) * MU, rtol=1e-14)


@formula("momentum-conversion", r"\text{momentum}_{\text{torch}} = 1 - \text{momentum}_{\text{Keras}}")
def _():
    assert_allclose(reference.momentum_from_keras(0.99), 1 - 0.99)
    torch_way, _ = reference.update_running(POPULATION_MEAN, np.ones(3), reference.moments(IMAGES), 1 - 0.99)
    assert_allclose(torch_way, reference.keras_update(POPULATION_MEAN, MU, 0.99), rtol=1e-13)


@formula(
    "weights-in-the-average",
    r"""(1 - \text{momentum})^n \cdot \text{initial} + \sum_{k=1}^{n} \text{momentum} \cdot
    (1 - \text{momentum})^{n-k} \cdot \text{batch}_k""",
)
def _():
    n, momentum, mean, var = len(BATCHES), 0.3, POPULATION_MEAN, np.ones(3)
    for batch in BATCHES:
        mean, var = reference.update_running(mean, var, reference.moments(batch), momentum)
    terms = [momentum * (1 - momentum) ** (n - k) * BATCHES[k - 1].mean(axis=0) for k in range(1, n + 1)]
    assert_allclose(mean, (1 - momentum) ** n * POPULATION_MEAN + sum(terms), rtol=1e-12)
    initial, of_batches = reference.batch_weights(n, momentum)
    assert_allclose(initial, (1 - momentum) ** n)
    assert_allclose(of_batches, [momentum * (1 - momentum) ** (n - k) for k in range(1, n + 1)])


@formula(
    "cumulative-average",
    r"""\text{momentum}_n = \frac{1}{n} \quad \Rightarrow \quad
    \text{running}_n = \frac{1}{n} \sum_{k=1}^{n} \text{batch}_k""",
)
def _():
    mean, var = np.zeros(3), np.ones(3)
    for n, batch in enumerate(BATCHES, start=1):
        assert reference.cumulative_momentum(n) == 1 / n
        mean, var = reference.update_running(mean, var, reference.moments(batch), 1 / n)
    assert_allclose(mean, sum(batch.mean(axis=0) for batch in BATCHES) / len(BATCHES), rtol=1e-12)


@formula(
    "algorithm-2",
    r"""\mathrm{E}[x] = \mathrm{E}_B[\mu_B], \qquad
    \mathrm{Var}[x] = \frac{m}{m-1} \mathrm{E}_B[\sigma_B^2]""",
)
def _():
    means, variances = batch_statistics()
    ours = reference.average_of_batches(means, variances, batch_size=4)
    assert_allclose(ours, (np.mean(means, axis=0), 4 / 3 * np.mean(variances, axis=0)), rtol=1e-13)


@formula(
    "total-variance",
    r"""\mathrm{Var}[x] = \mathrm{E}_B[\mu_B^2 + \sigma_B^2] - \mathrm{E}_B[\mu_B]^2 =
    \mathrm{E}_B[\sigma_B^2] + \mathrm{Var}_B[\mu_B]""",
)
def _():
    means, variances = batch_statistics()
    _, ours = reference.law_of_total_variance(means, variances)
    squares = np.mean(np.square(means) + variances, axis=0)
    assert_allclose(ours, squares - np.mean(means, axis=0) ** 2, rtol=1e-11)
    assert_allclose(ours, np.mean(variances, axis=0) + np.var(means, axis=0), rtol=1e-12)
    assert_allclose(ours, np.concatenate(BATCHES).var(axis=0), rtol=1e-12)


@formula(
    "what-algorithm-2-lacks",
    r"""\sigma_{\text{pooled}}^2 = \frac{m-1}{m} \mathrm{Var}_{\text{Algorithm 2}}[x] +
    \mathrm{Var}_B[\mu_B]""",
)
def _():
    means, variances = batch_statistics()
    _, of_algorithm_2 = reference.average_of_batches(means, variances, batch_size=4)
    between = reference.variance_between_means(means)
    assert_allclose(between, np.var(means, axis=0), rtol=1e-12)
    pooled = reference.pooled_moments(reference.moments(batch) for batch in BATCHES).variance
    assert_allclose(pooled, (4 - 1) / 4 * of_algorithm_2 + between, rtol=1e-12)


@formula(
    "merge",
    r"""n = n_1 + n_2, \qquad \delta = \mu_2 - \mu_1, \qquad \mu = \mu_1 + \delta \frac{n_2}{n}, \qquad
    M = M_1 + M_2 + \delta^2 \frac{n_1 n_2}{n}""",
)
def _():
    first, second = reference.moments(BATCHES[0]), reference.moments(BATCHES[1][:3])
    n, delta = first.count + second.count, second.mean - first.mean
    ours = reference.merge(first, second)
    assert ours.count == n
    assert_allclose(ours.mean, first.mean + delta * second.count / n, rtol=1e-13)
    assert_allclose(ours.m2, first.m2 + second.m2 + delta**2 * first.count * second.count / n, rtol=1e-13)
    assert_allclose(ours.m2, reference.moments(np.concatenate([BATCHES[0], BATCHES[1][:3]])).m2, rtol=1e-12)


@formula("welford", r"\mu' = \mu + \frac{x - \mu}{n}, \qquad M' = M + (x - \mu)(x - \mu')")
def _():
    state, x = reference.moments(BATCHES[0]), BATCHES[1][0]
    ours = reference.welford_update(state, x)
    n = state.count + 1
    mean = state.mean + (x - state.mean) / n
    assert ours.count == n
    assert_allclose(ours.mean, mean, rtol=1e-13)
    assert_allclose(ours.m2, state.m2 + (x - state.mean) * (x - mean), rtol=1e-13)
    # "One value at a time this is the method of Welford"
    assert_allclose(ours.m2, reference.merge(state, reference.moments([x])).m2, rtol=1e-12)


@formula("bias-before", r"\mathrm{BN}(x + b) = \mathrm{BN}(x)")
def _():
    b = np.array([3.0, -50.0, 0.5])
    assert_allclose(reference.forward(X + b, GAMMA, BETA)[0], reference.forward(X, GAMMA, BETA)[0], rtol=1e-8)


RENORM_EPS = 1e-3
R_MAX, D_MAX = 2.0, 1.5


def renorm_literally():
    sigma_batch, sigma = np.sqrt(VARIANCE + RENORM_EPS), np.sqrt(POPULATION_VARIANCE + RENORM_EPS)
    r = np.clip(sigma_batch / sigma, 1 / R_MAX, R_MAX)
    d = np.clip((MU - POPULATION_MEAN) / sigma, -D_MAX, D_MAX)
    return sigma_batch, r, d


@formula(
    "renorm-corrections",
    r"""r = \mathrm{clip}\left(\frac{\sigma_B}{\sigma}, \frac{1}{r_{\max}}, r_{\max}\right), \qquad
    d = \mathrm{clip}\left(\frac{\mu_B - \mu}{\sigma}, -d_{\max}, d_{\max}\right)""",
)
def _():
    _, r, d = renorm_literally()
    ours = reference.renorm_corrections(
        reference.moments(IMAGES),
        POPULATION_MEAN,
        POPULATION_VARIANCE,
        r_max=R_MAX,
        d_max=D_MAX,
        eps=RENORM_EPS,
    )
    assert_allclose(ours, (r, d), rtol=1e-12)
    # The example reaches both bounds and the inside, or it would not tell clipping from none.
    assert R_MAX in r
    assert 1 / R_MAX in r
    assert ((r > 1 / R_MAX) & (r < R_MAX)).any()


@formula("renorm-forward", r"\hat{x}_i = \frac{x_i - \mu_B}{\sigma_B} \cdot r + d")
def _():
    sigma_batch, r, d = renorm_literally()
    y, _ = reference.renorm_forward(IMAGES, r, d, eps=RENORM_EPS)
    assert_allclose(columns(y), (X - MU) / sigma_batch * r + d, rtol=1e-11, atol=1e-13)


@formula(
    "renorm-backward",
    r"""dx_i = \frac{\gamma r}{\sigma_B} \left( dz_i - \frac{1}{m} \sum_{j=1}^{m} dz_j -
    u_i \cdot \frac{1}{m} \sum_{j=1}^{m} dz_j u_j \right)""",
)
def _():
    sigma_batch, r, d = renorm_literally()
    _, kept = reference.renorm_forward(IMAGES, r, d, GAMMA, BETA, eps=RENORM_EPS)
    u = (X - MU) / sigma_batch
    dx = GAMMA * r / sigma_batch * (DY - sum(DY) / M - u * sum(DY * u) / M)
    assert_allclose(columns(reference.renorm_backward(UPSTREAM, kept).x), dx, rtol=1e-9, atol=1e-12)


@formula("families", r"\hat{x} = \frac{x - \mu_A}{\sqrt{\sigma_A^2 + \varepsilon}}")
def _():
    x = np.random.default_rng(2).normal(size=(2, 4, 3, 3))
    grouped = x.reshape(2, 2, 2, 3, 3)
    for ours, values, axes in [
        (reference.batch_norm_axes(x, EPS), x, (0, 2, 3)),
        (reference.layer_norm_axes(x, EPS), x, (1, 2, 3)),
        (reference.instance_norm_axes(x, EPS), x, (2, 3)),
        (reference.group_norm_axes(x, 2, EPS), grouped, (2, 3, 4)),
    ]:
        mean, variance = values.mean(axis=axes, keepdims=True), values.var(axis=axes, keepdims=True)
        assert_allclose(ours, ((values - mean) / np.sqrt(variance + EPS)).reshape(x.shape), rtol=1e-11)


@pytest.mark.parametrize("label", FORMULAS)
def test_the_reference_computes_what_the_page_says(label):
    FORMULAS[label][1]()


def test_every_formula_on_the_page_has_a_label_and_a_comparison():
    on_the_page = formulas_on_the_page(TEXT)
    labels = [label for label, _ in on_the_page]
    assert len(set(labels)) == len(labels), "a label stands twice on the page"
    # Two $$ for each labelled block; any other would be a formula without a label.
    assert TEXT.count("$$") == 2 * len(labels), "a $$ block without a label right above it"
    assert set(labels) == set(FORMULAS)


@pytest.mark.parametrize(("label", "source"), formulas_on_the_page(TEXT))
def test_the_comparison_is_of_the_formula_as_it_stands(label, source):
    assert FORMULAS[label][0] == source, "the page has changed: look at the comparison, then copy the source"


def test_a_formula_without_a_label_is_noticed():
    text = "<!-- formula: one -->\n$$\na\n$$\n\n$$\nb\n$$\n"
    assert formulas_on_the_page(text) == [("one", "a")]
    assert text.count("$$") != 2 * len(formulas_on_the_page(text))


def test_every_picture_and_page_it_links_to_is_there():
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", TEXT) if not target.startswith("https://")]
    assert "figures/axes.svg" in targets
    for target in targets:
        assert (PAGE.parent / target).is_file(), target


def test_columns_and_images_are_inverse_views():
    assert_array_equal(images(X), IMAGES)
