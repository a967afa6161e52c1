"""Train a small network on handwritten digits, prune the graph to what predicts, export it and use the file.

    python examples/digits.py [--epochs 30] [--seed 0] [--out digits.safetensors]
    python examples/digits.py --predict digits.safetensors

The first form trains, reports the test accuracy, writes the model and checks it in a process of its own. The second
form is that process: it knows the model by its file alone.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import symgrad as sg

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

DATA = Path(__file__).with_name("data") / "digits.npz"
TRAINING_IMAGES = 1437  # of 1,797; the other 360 are the test set
BATCH = 64


def main() -> None:
    arguments = parse_arguments()
    if arguments.predict is not None:
        predict(arguments.predict)
    else:
        train_and_export(arguments.epochs, arguments.seed, arguments.out)


def train_and_export(epochs: int, seed: int, path: Path) -> None:
    train_x, train_t, test_x, test_t = load_digits()

    # 1. Build the graph: nothing is computed yet. "batch" is a symbolic dimension, known when a function is called.
    g = sg.Graph(seed=seed)  # the seed of dropout
    x = g.input("x", ("batch", 64))
    t = g.input("t", ("batch",), sg.int32)
    w1 = g.param("w1", sg.init.he_normal((64, 128), seed=seed))
    b1 = g.param("b1", np.zeros(128, np.float32))
    w2 = g.param("w2", sg.init.he_normal((128, 10), seed=seed + 1))
    b2 = g.param("b2", np.zeros(10, np.float32))

    h = sg.nn.dropout(sg.nn.relu(x @ w1 + b1), 0.1)
    logits = h @ w2 + b2
    loss = sg.mean(sg.nn.softmax_cross_entropy(logits, t))
    probs = sg.nn.softmax(logits)

    # 2. Differentiate: the gradients and the optimizer's updates are further nodes of the same graph. The learning
    # rate is one too: it falls along half a cosine as the state `step` counts the calls.
    grads = sg.grad(loss, g.params)
    step = sg.optim.step_counter(g)
    rate = sg.optim.cosine(step, 0.1, steps=epochs * (len(train_x) // BATCH))
    updates = sg.optim.momentum(g.params, grads, lr=rate, beta=0.9)

    # 3. Compile two functions over the one graph. They share the params: `predict_probs` sees what `train` learns.
    # A function with updates runs in the phase "train" (dropout on), one without in "infer" (dropout gone).
    train = sg.compile([x, t], loss, updates=updates, name="train")
    predict_probs = sg.compile([x], probs, name="predict")

    # 4. Train: each call is one native step of forward pass, backward pass and update. The first call compiles.
    start = time.perf_counter()
    losses: list[float] = []
    for xb, tb in progress(batches(train_x, train_t, epochs, seed), epochs * (len(train_x) // BATCH)):
        losses.append(float(train(xb, tb)))
    seconds = time.perf_counter() - start
    expected = predict_probs(test_x)
    print(f"trained {len(losses)} steps in {seconds:.2f} s, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"test accuracy: {accuracy(expected, test_t):.2%} of {len(test_t)} images")

    # 5. Prune: from the graph with everything in it to the program that computes `probs` and nothing else.
    # Params become constants.
    program = sg.prune({"probs": probs}, [x])
    print(f"\nthe graph has {len(g.nodes)} nodes; what is left of it:\n{program.summary()}\n")

    # 6. Export (which prunes too) and read the file back. Loading runs no code from the file.
    sg.export(path, {"probs": probs}, [x])
    check_pruned(sg.load(path))
    print(f"wrote {path} ({path.stat().st_size:,} bytes): no loss, gradient, update, dropout, random or phase node")

    # 7. The file alone must give the same bits in another process.
    command = [sys.executable, __file__, "--predict", str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise SystemExit(f"the fresh process failed:\n{answer.stderr}")
    if answer.stdout.splitlines()[-1] != digest_line(expected):
        raise SystemExit(f"the fresh process predicts otherwise:\n{answer.stdout}expected {digest_line(expected)}")
    print(f"a fresh process predicts the same bits from the file for all {len(test_t)} test images")


def predict(path: Path) -> None:
    """Predict the test set with a model file."""
    _, _, test_x, test_t = load_digits()
    model = sg.compile(sg.load(path))
    probs = model(x=test_x)["probs"]
    print(f"test accuracy: {accuracy(probs, test_t):.2%} of {len(test_t)} images")
    print(digest_line(probs))


def load_digits() -> tuple[Array, Array, Array, Array]:
    """Training images and labels, test images and labels; images are float32 rows of 64 values with mean about 0.

    The split is a fixed shuffle, so the same people wrote digits of both sets.
    """
    with np.load(DATA) as data:
        x = data["images"].reshape(-1, 64).astype(np.float32)
        t = data["labels"].astype(np.int32)
    x = x / np.float32(8) - np.float32(1)  # pixels are 0 to 16
    order = np.random.default_rng(0).permutation(len(x))
    training, test = order[:TRAINING_IMAGES], order[TRAINING_IMAGES:]
    return x[training], t[training], x[test], t[test]


def batches(x: Array, t: Array, epochs: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Shuffled batches of equal size: a function compiles once for each batch size it meets."""
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        order = random.permutation(len(x))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            yield x[chosen], t[chosen]


def check_pruned(program: sg.Program) -> None:
    """Fail if anything of training is left in a program."""
    assert [n.name for n in program.inputs] == ["x"], "the labels are not needed"
    assert not program.updates
    assert not program.states
    assert all(n.order == 0 for n in program.nodes), "a node of order 1 or more is a derivative"
    left = {n.op.name for n in program.nodes}
    # The loss takes logarithms and checks its labels; philox makes random bits.
    training = {"log", "check_index", "phase", "philox", "stop_gradient", "param", "state"}
    assert left.isdisjoint(training), f"left of training: {left & training}"


def accuracy(probs: Array, t: Array) -> float:
    return float(np.mean(probs.argmax(axis=1) == t))


def digest_line(probs: Array) -> str:
    """A line that is equal for equal bits only."""
    return f"sha256 of the probabilities: {hashlib.sha256(probs.tobytes()).hexdigest()}"


def progress(items: Iterator[tuple[Array, Array]], total: int) -> Iterator[tuple[Array, Array]]:
    """The items, with a progress bar on stderr."""
    try:
        from tqdm import tqdm
    except ImportError:
        raise SystemExit(
            "this example shows its progress with tqdm, which is not installed; it comes with the extra "
            "'examples': pip install -e '.[examples]'"
        ) from None
    return iter(tqdm(items, total=total, unit="step", mininterval=0.2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train, prune, export and check a digit classifier.")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training set (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and dropout (default 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("digits.safetensors"), help="model file (default digits.safetensors)"
    )
    parser.add_argument("--predict", type=Path, metavar="FILE", help="predict the test set with a model file instead")
    arguments = parser.parse_args()
    if arguments.epochs < 1 or arguments.seed < 0:
        parser.error("--epochs is at least 1 and --seed at least 0")
    return arguments


if __name__ == "__main__":
    main()
