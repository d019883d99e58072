"""Every recipe beside this file as a DAG of its own name, and one that takes any recipe."""

from pathlib import Path

from pipeline.orchestration.airflow import generic_dag, recipe_dag

_RECIPES = Path(__file__).parent / "recipes"

for _path in sorted(_RECIPES.glob("*.toml")):
    _dag = recipe_dag(_path)
    globals()[_dag.dag_id] = _dag

reconstruct = generic_dag(_RECIPES)
