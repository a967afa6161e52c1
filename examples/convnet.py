"""Train a convolutional network on handwritten digits, with batch normalization and dropout, and export it.

    python examples/convnet.py [--epochs 30] [--seed 0] [--out convnet.safetensors]
    python examples/convnet.py --predict convnet.safetensors

The same task and the same two forms as `digits.py`, which explains the steps; here is what a network with layers and
running statistics adds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from digits import BATCH, accuracy, batches, check_pruned, digest_line, load_digits, progress

import symgrad as sg

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

CHANNELS = (1, 16, 32, 64)
CLASSES = 10


def main() -> None:
    arguments = parse_arguments()
    if arguments.predict is not None:
        predict(arguments.predict)
    else:
        train_and_export(arguments.epochs, arguments.seed, arguments.out)


def train_and_export(epochs: int, seed: int, path: Path) -> None:
    train_x, train_t, test_x, test_t = load_images()

    # 1. Build the graph. Three layers halve the image once and end in one mean per channel.
    g = sg.Graph(seed=seed)  # the seed of dropout
    x = g.input("x", ("batch", 1, 8, 8))
    t = g.input("t", ("batch",), sg.int32)
    running: list[tuple[sg.Node, sg.Node]] = []
    h = x
    for layer in range(3):
        with g.scope(f"layer{layer}"):
            h, moved = convolution(h, CHANNELS[layer], CHANNELS[layer + 1], seed=seed + layer)
        running += moved
        if layer == 0:
            h = sg.nn.max_pool2d(h, 2)
    h = sg.nn.dropout(sg.mean(h, axis=(2, 3)), 0.2)
    w = g.param("w", sg.init.he_normal((CHANNELS[-1], CLASSES), seed=seed + 3))
    b = g.param("b", np.zeros(CLASSES, np.float32))
    logits = h @ w + b
    loss = sg.mean(sg.nn.softmax_cross_entropy(logits, t))
    probs = sg.nn.softmax(logits)

    # 2. Differentiate and compile. The new running statistics are updates like those of the optimizer: the same call
    # makes both.
    steps = epochs * (len(train_x) // BATCH)
    rate = sg.optim.cosine(sg.optim.step_counter(g), 0.1, steps=steps)
    updates = sg.optim.momentum(g.params, sg.grad(loss, g.params), lr=rate, beta=0.9, weight_decay=5e-4)
    train = sg.compile([x, t], loss, updates=[*updates, *running], name="train")
    predict_probs = sg.compile([x], probs, name="predict")

    # 3. Train. In the phase "train" the statistics are those of the batch, in "infer" the running ones.
    start = time.perf_counter()
    losses: list[float] = []
    for xb, tb in progress(batches(train_x, train_t, epochs, seed), steps):
        losses.append(float(train(xb, tb)))
    seconds = time.perf_counter() - start
    expected = predict_probs(test_x)
    print(f"trained {len(losses)} steps in {seconds:.1f} s, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"test accuracy: {accuracy(expected, test_t):.2%} of {len(test_t)} images")

    # 4. Prune and export. Statistics become constants; batch normalization is a scale and a shift then.
    print(f"\nthe graph has {len(g.nodes)} nodes; what is left of it:\n{sg.prune({'probs': probs}, [x]).summary()}\n")
    sg.export(path, {"probs": probs}, [x])
    check_pruned(sg.load(path))
    print(f"wrote {path} ({path.stat().st_size:,} bytes): no loss, gradient, update, dropout or state")

    # 5. The file alone must give the same bits in another process.
    command = [sys.executable, __file__, "--predict", str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise SystemExit(f"the fresh process failed:\n{answer.stderr}")
    if answer.stdout.splitlines()[-1] != digest_line(expected):
        raise SystemExit(f"the fresh process predicts otherwise:\n{answer.stdout}expected {digest_line(expected)}")
    print(f"a fresh process predicts the same bits from the file for all {len(test_t)} test images")


def convolution(x: sg.Node, entering: int, leaving: int, *, seed: int) -> tuple[sg.Node, list[tuple[sg.Node, sg.Node]]]:
    """A 3 by 3 convolution, batch normalization and a relu, with the updates of the running statistics.

    The normalization takes the mean away, so the convolution has no bias of its own.
    """
    g = x.graph
    w = g.param("w", sg.init.he_normal((leaving, entering, 3, 3), seed=seed))
    gamma = g.param("gamma", np.ones(leaving, np.float32))
    beta = g.param("beta", np.zeros(leaving, np.float32))
    mean = g.state("mean", np.zeros(leaving, np.float32))
    variance = g.state("variance", np.ones(leaving, np.float32))
    h, running = sg.nn.batch_norm(sg.nn.conv2d(x, w, padding="same"), gamma, beta, mean, variance)
    return sg.nn.relu(h), running


def predict(path: Path) -> None:
    """Predict the test set with a model file."""
    _, _, test_x, test_t = load_images()
    model = sg.compile(sg.load(path))
    probs = model(x=test_x)["probs"]
    print(f"test accuracy: {accuracy(probs, test_t):.2%} of {len(test_t)} images")
    print(digest_line(probs))


def load_images() -> tuple[Array, Array, Array, Array]:
    """The digits, split as in `digits.py`, as images of one channel: (n, 1, 8, 8)."""
    train_x, train_t, test_x, test_t = load_digits()
    return train_x.reshape(-1, 1, 8, 8), train_t, test_x.reshape(-1, 1, 8, 8), test_t


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train, prune, export and check a convolutional digit classifier.")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training set (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and dropout (default 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("convnet.safetensors"), help="model file (default convnet.safetensors)"
    )
    parser.add_argument("--predict", type=Path, metavar="FILE", help="predict the test set with a model file instead")
    arguments = parser.parse_args()
    if arguments.epochs < 1 or arguments.seed < 0:
        parser.error("--epochs is at least 1 and --seed at least 0")
    return arguments


if __name__ == "__main__":
    main()
