"""The steps of the main job put together: task, sampling, training, the quickstart."""
