"""Ask an endpoint for one held-out digit of a bundle and print the answer beside the truth."""

import json
import sys
import urllib.request
from pathlib import Path

url, bundle = sys.argv[1:]
sample = json.loads((Path(bundle) / "sample.json").read_text())
row, truth = sample["rows"][0], sample["targets"][0]
for y in range(8):
    print("   ", "".join(" ░▒▓█"[min(4, int(row[f"pixel_{y}_{x}"] / 3.5))] * 2 for x in range(8)))
request = urllib.request.Request(
    url, data=json.dumps({"rows": [row]}).encode(), headers={"Content-Type": "application/json"}
)
with urllib.request.urlopen(request, timeout=10) as response:
    answer = json.load(response)
print(f"answer: {answer['predictions'][0]}   truth: {truth['label']}   (version {answer['version']})")
