"""What the sections of `on_a_gpu.py` gave, in results/NAME.json and results/NAME.md."""

import json
import re

from benchmarks import machine


class Report:
    """The results so far, in results/NAME.json and results/NAME.md."""

    def __init__(self, name, about, titles):
        self.name = name or re.sub(r"[^\w.-]+", "_", about["machine"]).lower()
        path = machine.RESULTS / f"{self.name}.json"
        self.contents = json.loads(path.read_text()) if path.exists() else {"sections": {}}
        self.about, self.titles = about, titles

    def is_done(self, name) -> bool:
        return self.contents["sections"].get(name, {}).get("status") == "done"

    def put(self, name, run) -> None:
        self.contents["sections"][name] = run | {"about": self.about}
        machine.save(self.name, self.contents, self.markdown())

    def markdown(self) -> str:
        """A table for each section."""
        text = ["`python benchmarks/on_a_gpu.py`"]
        for name, title in self.titles.items():
            if run := self.contents["sections"].get(name):
                about = ", ".join(map(str, run["about"].values()))
                took = f"{run['status']}, {run['seconds']:.0f} s"
                text.append(f"## {title}\n\n{took}; {about}")
                text += [table(run["results"])] if run["results"] else []
                text += [f"```\n{run['error']}```"] if run["error"] else []
        return "\n\n".join(text) + "\n"


def table(results) -> str:
    """The results as a Markdown table; a result may lack some of the figures."""
    columns = list(dict.fromkeys(key for result in results for key in result))
    rows = [columns, ["---"] * len(columns)]
    rows += [[str(result.get(column, "")) for column in columns] for result in results]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
