# SPDX-License-Identifier: MIT
"""A repository on the Hub is a model like a folder."""

import json

import pytest
from support.loading import run_python
from support.loopback_hub import loopback_hub  # noqa: F401
from support.prediction_models import classifier, dino, picture

pytestmark = pytest.mark.slow

CODE = """
import json
from huggingface_hub import HfApi
from hf_internimage import predict

api = HfApi()
for name in ("classifier", "dino"):
    repository = api.create_repo(f"hf-internimage-tests/{name}").repo_id
    api.upload_folder(repo_id=repository, folder_path=FOLDER + "/" + name)
    for model in (FOLDER + "/" + name, repository):
        (prediction,) = predict(model, FOLDER + "/a.png", threshold=0.0, revision="main")
        print(json.dumps([prediction.labels, [float(score) for score in prediction.scores]]))
"""


def test_predictions_are_those_of_the_folder(loopback_hub, tmp_path):  # noqa: F811
    classifier(tmp_path / "classifier")
    dino(tmp_path / "dino")
    picture().save(tmp_path / "a.png")
    environment = loopback_hub.environment(tmp_path / "home")
    printed = run_python(f"FOLDER = {str(tmp_path)!r}\n{CODE}", **environment)
    lines = [json.loads(line) for line in printed.splitlines()]
    assert lines[0] == lines[1]
    assert lines[2] == lines[3]
    assert len(lines[2][0]) > 0
