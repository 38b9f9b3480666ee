"""What lies in a training's folder: `training` writes it, and `hub` makes the model's card from it."""

RECIPE_FILE = "recipe.yaml"
LOG_FILE = "log.jsonl"  # a line of JSON per report
ENVIRONMENT_FILE = "environment.json"
STATE_FILE = "training_state.pt"  # beside the model, in the folder of each checkpoint
