"""Models as files for other runtimes: `export` writes and checks one, `runtime` runs it as the model is run."""
