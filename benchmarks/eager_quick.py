"""The recipe `quick` as a script anybody would write: two-hot inputs, nn.Sequential, AdamW, one run a process.

python benchmarks/eager_quick.py --weight-decay 1 --train-fraction 0.4 --seed 0 [--out FILE]
"""

import argparse
import json

import torch
import torch.nn.functional as F
from torch import nn

P, WIDTH, EVAL_EVERY, STOP_AFTER, THRESHOLD, SUSTAIN = 97, 256, 10, 300, 0.99, 3

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--weight-decay", type=float, default=1.0)
parser.add_argument("--train-fraction", type=float, default=0.4)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=3000)
parser.add_argument("--out")
args = parser.parse_args()

torch.manual_seed(args.seed)
pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
labels = pairs.sum(1) % P
inputs = F.one_hot(pairs, P).flatten(1).float()
order = torch.randperm(len(pairs))
train, test = order.tensor_split([int(args.train_fraction * len(pairs))])
x, y, x_test, y_test = inputs[train], labels[train], inputs[test], labels[test]

model = nn.Sequential(nn.Linear(2 * P, WIDTH), nn.ReLU(), nn.Linear(WIDTH, P))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=args.weight_decay, betas=(0.9, 0.98))

curves, streaks, crossed = [], {"train": 0, "test": 0}, {}
for step in range(args.steps + 1):
    if step % EVAL_EVERY == 0:
        with torch.no_grad():
            logits, logits_test = model(x), model(x_test)
            row = {
                "step": step,
                "train_loss": F.cross_entropy(logits, y).item(),
                "test_loss": F.cross_entropy(logits_test, y_test).item(),
                "train": (logits.argmax(1) == y).float().mean().item(),
                "test": (logits_test.argmax(1) == y_test).float().mean().item(),
            }
        curves.append(row)
        for split in ("train", "test"):
            streaks[split] = streaks[split] + 1 if row[split] >= THRESHOLD else 0
            if streaks[split] == SUSTAIN:
                crossed.setdefault(split, step - (SUSTAIN - 1) * EVAL_EVERY)
        if "test" in crossed and step >= crossed["test"] + STOP_AFTER:
            break
    if step < args.steps:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

if args.out:
    with open(args.out, "w") as file:
        json.dump(curves, file)
print(json.dumps({"steps": step, "t_memorize": crossed.get("train"), "t_generalize": crossed.get("test")}))
