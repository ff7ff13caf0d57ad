#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""check-demo.py SUMMARY.json: fails unless the demo's result is what the project promises."""
import json
import sys


def problems(s):
    """The promises that the summary breaks, as sentences."""
    trained, untrained = s["acceptance_length_trained"], s["acceptance_length_untrained"]
    checks = [
        (trained >= 1.8, f"acceptance_length_trained is {trained:.3f}, at least 1.8 is promised"),
        (trained >= 1.6 * untrained, f"acceptance_length_trained {trained:.3f} is less than 1.6 x untrained {untrained:.3f}"),
        (s["lossless"] is True, f"lossless is {s['lossless']}"),
        (s["data_wait_fraction"] <= 0.02, f"data_wait_fraction is {s['data_wait_fraction']:.4f}, at most 0.02 is promised"),
        (s["samples"] > 0 and s["optimizer_steps"] > 0, "nothing was trained"),
        (s["processes"] >= 5, f"only {s['processes']} processes took part"),
    ]
    return [sentence for holds, sentence in checks if not holds]


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        summary = json.load(file)
    found = problems(summary)
    for sentence in found:
        print("check-demo:", sentence, file=sys.stderr)
    if not found:
        print("check-demo: the demo keeps its promises")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
