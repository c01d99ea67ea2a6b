"""Kills a training at 20 random moments: python -m tests.train.kill_often [FOLDER]"""

import sys
import tempfile
import time
from pathlib import Path

from tests import tiny_networks  # noqa: F401
from tests.train.helpers import make_folders, quick_recipe
from tests.train.test_processes import finish, kill_often, kill_recipe
from tests.train.test_resume import assert_same

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    recipe = kill_recipe(make_folders(folder / "data", count=20))
    finish(quick_recipe(recipe.data), folder / "warm")
    begin = time.monotonic()
    undisturbed = finish(recipe, folder / "undisturbed")
    kill_often(recipe, folder / "killed", kills=20, longest=(time.monotonic() - begin) / 2)
    assert_same(finish(recipe, folder / "killed"), undisturbed)
    print("killed 20 times, every checkpoint readable, the same weights at the end")
