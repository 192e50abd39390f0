"""Print which mistakes vitconv catches, and which one ``allclose`` on the logits catches.

Run ``python benchmarks/mutants.py`` (about 20 s). Each row is a mutant: a correct conversion with one mistake.
``verify`` is the check of ``vitconv verify`` that fails. ``numbers`` is the first stage at which the models diverge if
only their values are compared. ``allclose`` says whether ``torch.allclose(logits, atol=1e-3)`` on one image catches
the mistake; that was the check of the script that transformers used to ship. The exit code is 1 if a mutant is not
caught at the stage that it is in.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from mutants import BASES, MUTANTS, make_base, run_checks


def main() -> None:
    console = Console(width=110)
    table = Table("mutant", "stage of the mistake", "verify", "numbers", "allclose(atol=1e-3)", box=None)
    caught = noticed = 0
    with tempfile.TemporaryDirectory() as root:
        bases = {name: make_base(name, Path(root) / name) for name in BASES}
        for number, mutant in enumerate(track(MUTANTS, "mutants", console=Console(stderr=True))):
            folder = Path(root) / str(number)
            shutil.copytree(bases[mutant.base].folder.parent, folder)
            mutant.edit(folder / "hf")
            outcome = run_checks(bases[mutant.base], folder / "hf")
            caught += outcome.caught(mutant)
            noticed += not outcome.allclose
            table.add_row(
                mutant.name,
                mutant.stage,
                outcome.verdict or "[red]missed",
                outcome.numbers or "-",
                "[red]missed" if outcome.allclose else "caught",
                style=None if outcome.caught(mutant) else "red",
            )
            shutil.rmtree(folder)
    console.print(table)
    console.print(f"Of {len(MUTANTS)} mutants, vitconv catches {caught} at the right stage, allclose {noticed}.")
    sys.exit(caught < len(MUTANTS))


if __name__ == "__main__":
    main()
