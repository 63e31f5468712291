"""From a csv to predictions with the commands of docs/own-data.md as they stand there, on Ray."""

import newcomer
import pandas as pd
import pytest

from equipoise import Run


@pytest.mark.ray
def test_every_command_of_the_page_in_turn(ray_cluster, tmp_path, monkeypatch):
    newcomer.write_pets(tmp_path / "my")
    monkeypatch.chdir(tmp_path)
    verbs = []
    for words in newcomer.commands():
        verbs.append(words[0])
        # Fewer epochs than the starter file says: this is about the path.
        newcomer.run([*words, "max_epochs=3"] if words[0] == "fit" else words)
    assert verbs == ["init", "prepare", "fit", "evaluate", "predict", "export", "predict"]
    found, again = (pd.read_csv(tmp_path / "pets" / name) for name in ("predictions.csv", "again.csv"))
    assert found.equals(again)
    assert found["source_id"].tolist() == [f"pet-{i}" for i in range(140, 160)]
    truth = [["cat", "dog", "hen"][i % 3] for i in range(140, 160)]
    assert (found["predicted"] == truth).mean() > 0.6
    assert Run.open("pets/run").finished
